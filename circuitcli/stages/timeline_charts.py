"""The charts under the slider: numbers of circuits, of crosscoders and of matched features over checkpoints."""

from collections.abc import Sequence

from circuitcli.records import CircuitRecord, CrosscoderRecord, DevelopmentRecord
from circuitcli.records.through import Chart, Curve
from circuitcli.runs import Run

_SHARED = (
    ("before", "weighted", "with the checkpoint before"),
    ("before", "shuffled_weighted", "the same, pairs dealt out at random"),
    ("last", "weighted", "with the last checkpoint"),
    ("seed", "weighted", "same checkpoint, SAEs of another seed"),
)


def charts(run: Run, records: Sequence[CircuitRecord]) -> tuple[Chart, ...]:
    """What stands under the slider: of the circuits, of the crosscoders, and of matched features."""
    names = [one.checkpoint for one in records]
    return (*_of_circuits(records), *_of_features(run, names), *_of_crosscoders(run, names))


def _of_circuits(records: Sequence[CircuitRecord]) -> list[Chart]:
    def curve(label: str, name: str, **bounds: str) -> Curve:
        told = {bound: tuple(getattr(one, field) for one in records) for bound, field in bounds.items()}
        return Curve(label=label, values=tuple(getattr(one, name) for one in records), **told)

    shared = [
        Curve(label=label, values=tuple((getattr(one, where) or {}).get(what) for one in records))
        for where, what, label in _SHARED
    ]
    metric = [curve("the model", "metric_clean"), curve("chance", "metric_chance")]
    return [
        Chart(title="The behaviour", unit=f"metric, {records[0].unit}", curves=metric),
        Chart(
            title="Faithfulness of the circuit",
            unit="share of the behaviour that it keeps; none where there is no behaviour",
            is_share=True,
            curves=[curve("with 95 % interval over prompts", "faithfulness", low="low", high="high")],
        ),
        Chart(title="In common with other circuits", unit="weighted Jaccard", is_share=True, curves=_known(shared)),
        Chart(title="Size", unit="number", curves=[curve("nodes", "n_nodes"), curve("edges", "n_edges")]),
        Chart(title="Errors", unit="share of |effect|", is_share=True, curves=[curve("error terms", "error_share")]),
    ]


def _known(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if any(value is not None for value in curve.values)]


def _of_features(run: Run, names: Sequence[str]) -> list[Chart]:
    """Of all features of the checkpoints' SAEs, matched from each to the next: means over hook points."""
    there = [one for one in run.stream().of(DevelopmentRecord) if list(one.checkpoints) == list(names)]
    if not there:
        return []
    shares = [
        Curve(label=label, values=_means([getattr(one, name) for one in there]))
        for name, label in (
            ("matched", "with the checkpoint before"),
            ("seeds", "with another seed of the same checkpoint"),
            ("shuffled", "with the checkpoint before, shuffled"),
        )
    ]
    turnover = [Curve(label=name, values=_means([getattr(one, name) for one in there])) for name in ("born", "died")]
    about = f"cosine of {there[0].by} at least {there[0].least:g}"
    return [
        Chart(title="All features: share that is matched", unit=about, is_share=True, curves=_known(shares)),
        Chart(title="All features: births and deaths", unit="mean number a hook point", curves=turnover),
    ]


def _means(values: Sequence[Sequence[float | int | None]]) -> tuple[float | None, ...]:
    """Of each checkpoint that over hook points, where it is known."""
    columns = [[float(value) for value in column if value is not None] for column in zip(*values, strict=True)]
    return tuple(sum(column) / len(column) if column else None for column in columns)


def _of_crosscoders(run: Run, names: Sequence[str]) -> list[Chart]:
    """Of crosscoders over the same checkpoints."""
    there = [one for one in run.stream().of(CrosscoderRecord) if list(one.checkpoints) == list(names)]
    if not there:
        return []

    def of(field: str) -> list[Curve]:
        return _known([Curve(label=one.hook, values=tuple(map(_number, getattr(one, field) or ()))) for one in there])

    found = [
        Chart(title="Crosscoder: features born", unit="at each checkpoint", curves=of("born")),
        Chart(title="Crosscoder: features that died", unit="at each checkpoint", curves=of("died")),
        Chart(title="Crosscoder: RelDec", unit="mean share of a feature's length", curves=of("reldec")),
        Chart(title="Crosscoder: RelIE", unit="mean share of a feature's effect on the metric", curves=of("relie")),
        Chart(title="Crosscoder: rise of the loss", unit="nats, with its reconstruction", curves=of("ce_increase")),
    ]
    return [chart for chart in found if chart.curves]


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)
