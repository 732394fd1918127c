"""Models and coders that were trained, and what was measured of them, as tables."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import (
    BaselineRecord,
    CheckpointRecord,
    EvaluationRecord,
    ExportRecord,
    ModelRecord,
    Record,
    ReplacementRecord,
    SaeRecord,
    SweepRecord,
)

_SCORES = ("l0", "explained_variance", "cosine", "loss_recovered", "ce_increase", "kl_spliced", "silent")


def four_digits(value: float | int | None) -> str:
    """Four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def saes(made: Sequence[Record]) -> Rows:
    """SAEs that were trained, with what they explain."""
    found = [record for record in made if isinstance(record, SaeRecord)]
    rows = [
        (
            record.places,
            record.architecture,
            f"{record.d_sae:,}",
            four_digits(record.l0),
            four_digits(record.explained_variance),
        )
        for record in found
    ]
    return Rows(("hook point", "SAE", "features", "active per token", "variance explained"), rows)


def sweep(made: Sequence[Record]) -> Rows:
    """The variants of a sweep."""
    found = [record for record in made if isinstance(record, SweepRecord)]
    scores = ("l0", "explained_variance", "loss_recovered", "dead")
    rows = [
        (record.variant, record.places, *(four_digits(getattr(record, name)) for name in scores)) for record in found
    ]
    return Rows(("variant", "hook point", "active per token", "variance explained", "loss recovered", "dead"), rows)


def evaluations(made: Sequence[Record]) -> Rows:
    """What coders do on held-out tokens."""
    found = [record for record in made if isinstance(record, EvaluationRecord)]
    others = ("cosine", "loss_recovered", "ce_increase", "kl_spliced", "silent")
    rows = [
        (
            record.hook,
            four_digits(record.l0),
            four_digits(record.explained_variance),
            *(four_digits(getattr(record, name)) for name in others),
        )
        for record in found
    ]
    columns = ("hook point", "L0", "explained", "cosine", "recovered", "loss added", "KL", "silent")
    counts = " ".join(dict.fromkeys(f"{record.n_eval_tokens:,}" for record in found))
    title = f"on {counts} tokens: shares of variance explained, of loss recovered; loss added and KL in nats"
    return Rows(columns, rows, title)


def replacements(made: Sequence[Record]) -> Rows:
    """The model's loss with all that coders write in place."""
    found = [record for record in made if isinstance(record, ReplacementRecord)]
    scores = ("ce_clean", "ce_spliced", "ce_mean", "kl_spliced", "loss_recovered")
    rows = [
        (
            " ".join(filter(None, [record.variant, *record.replaced])),
            *(four_digits(getattr(record, name)) for name in scores),
        )
        for record in found
    ]
    columns = ("replaced at once", "loss clean", "replaced", "by means", "KL", "recovered")
    return Rows(
        columns, rows, "the model's loss in nats, as it is, with all that coders write in place, and with means"
    )


def exports(made: Sequence[Record]) -> Rows:
    """Where coders were written in the files of others."""
    found = [record for record in made if isinstance(record, ExportRecord)]
    return Rows(("hook point", "format", "written to"), [(record.hook, record.format, record.path) for record in found])


def models(made: Sequence[Record]) -> Rows:
    """A model that was trained, below the checkpoints that lead to it."""
    models = [record for record in made if isinstance(record, ModelRecord)]
    earlier = [record for record in made if isinstance(record, CheckpointRecord)] if models else []
    rows = [(record.name, f"{models[0].path}/{record.path}", four_digits(record.validation_loss)) for record in earlier]
    rows += [("model", record.path, four_digits(record.validation_loss)) for record in models]
    notes = [
        f"{record.n_parameters:,} parameters; by token frequencies {four_digits(record.unigram_loss)} nats"
        + ("" if record.bits_per_byte is None else f"; {four_digits(record.bits_per_byte)} bits per byte")
        for record in models
    ]
    return Rows(("", "directory", "nats per held-out token"), rows, "".join(notes))


def baseline_rows(made: Sequence[Record]) -> Rows:
    """SAEs and what stands beside them, hook point after hook point; nothing without baselines."""
    found = [record for record in made if isinstance(record, BaselineRecord)]
    columns = (
        "hook point",
        "coder",
        "features",
        "L0",
        "explained",
        "cosine",
        "recovered",
        "loss added",
        "KL",
        "silent",
    )
    rows = []
    for hook in dict.fromkeys(record.hook for record in found):
        saes = [one for one in made if isinstance(one, EvaluationRecord) and one.hook == hook]
        rows += [_row(sae, f"SAE ({sae.architecture})", getattr(sae, "d_sae", None)) for sae in saes]
        rows += [_row(record, record.name, record.d_sae) for record in found if record.hook == hook]
    return Rows(columns, rows, "SAEs beside baselines with as many codes")


def _row(record: EvaluationRecord | BaselineRecord, name: str, d_sae: int | None) -> tuple[str, ...]:
    scores = (getattr(record, score) for score in _SCORES)
    told = ("" if value is None else f"{value:.3g}" for value in scores)
    return (record.hook, name, "" if d_sae is None else f"{d_sae:,}", *told)
