"""What was measured of coders, as tables."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import BaselineRecord, EvaluationRecord, Record

_SCORES = ("l0", "explained_variance", "cosine", "loss_recovered", "ce_increase", "kl_spliced", "silent")


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
