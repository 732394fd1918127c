"""What a run holds, as people read it: a short table, one line for each thing."""

from collections.abc import Iterator, Sequence
from functools import singledispatch

from circuitcli.cli.console import Rows
from circuitcli.records import (
    ActivationsRecord,
    EvaluationRecord,
    FeaturesRecord,
    FigureRecord,
    GraphRecord,
    Record,
    ReportRecord,
    RunRecord,
    ScoreRecord,
    StageRecord,
    TrainedRecord,
)

_LONGEST_PROMPT = 40
Row = tuple[str, str, str, str]


def table(records: Sequence[Record]) -> Rows:
    """All that a run holds, and which stages are not finished."""
    title = next((f"{record.path}: {record.model}" for record in records if isinstance(record, RunRecord)), "")
    return Rows(("what", "name", "made as", "found"), [row for record in records for row in _rows(record)], title)


@singledispatch
def _rows(record: Record) -> Iterator[Row]:
    yield from ()


@_rows.register
def _(record: StageRecord) -> Iterator[Row]:
    if record.state != "finished":
        yield "stage", record.name, record.command, record.state


@_rows.register
def _(record: ActivationsRecord) -> Iterator[Row]:
    yield "activations", record.hook, f"width {record.d_model:,}, {record.dtype}", f"{record.n_tokens:,} tokens"


@_rows.register
def _(record: TrainedRecord) -> Iterator[Row]:
    extra = record.model_extra or {}
    k, variant = extra.get("k"), getattr(record, "variant", "")
    made = f"{record.architecture}{f' k={k}' if k is not None else ''}, {record.d_sae:,} features"
    shares = ((record.explained_variance, "explained"), (record.loss_recovered, "of the loss recovered"))
    measures = [f"{value:.3f} {words}" for value, words in shares if value is not None]
    measures += [] if record.l0 is None else [f"L0 {record.l0:.3g}"]
    measures += [] if record.dead is None else [f"{record.dead:.0%} dead"]
    yield record.kind.replace("sae", "SAE"), f"{record.places} {variant}".strip(), made, ", ".join(measures)
    yield from (("", "", "", f"! {problem}") for problem in record.problems or ())


@_rows.register
def _(record: EvaluationRecord) -> Iterator[Row]:
    explained = "" if record.explained_variance is None else f"{record.explained_variance:.3f} explained, "
    yield "evaluation", record.hook, f"on {record.n_eval_tokens:,} tokens", f"{explained}L0 {record.l0:.3g}"


@_rows.register
def _(record: FeaturesRecord) -> Iterator[Row]:
    yield "features", record.hook, record.path, f"{record.n_live:,} live, {record.n_dead:,} dead"


@_rows.register
def _(record: GraphRecord) -> Iterator[Row]:
    extra = record.model_extra or {}
    told = record.explained
    told = told if len(told) <= _LONGEST_PROMPT else f"{told[:_LONGEST_PROMPT]}…"
    target = repr(record.target) if record.target is not None else record.explained_target
    after = repr(told) if record.n_prompts == 1 else told
    size = f"{extra.get('n_nodes', '?')} nodes, {extra.get('n_edges', '?')} edges"
    yield "graph", record.name, f"{record.method}, {record.metric} of {target} after {after}", size


@_rows.register
def _(record: ScoreRecord) -> Iterator[Row]:
    within = "" if record.low is None or record.high is None else f" ({record.low:.3g} to {record.high:.3g})"
    yield "score", record.name, f"of {record.graph}" if record.graph else "", f"{record.value:.3g}{within}"


@_rows.register
def _(record: ReportRecord) -> Iterator[Row]:
    yield "report", record.path, "", ""


@_rows.register
def _(record: FigureRecord) -> Iterator[Row]:
    yield "figure", record.path, "", ""
