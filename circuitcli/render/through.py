"""Plots over checkpoints: what a crosscoder tells of features, and circuits of one behaviour as small multiples."""

from collections.abc import Sequence

from circuitcli.records import CircuitRecord, CrosscoderRecord
from circuitcli.render.checkpoint_axis import axis_of_names
from circuitcli.render.plots import Axis, Number, Panel, Plot, Series


def crosscoder_plot(record: CrosscoderRecord) -> Plot:
    """When features are there, how many come and go, and what the reconstruction costs at each checkpoint."""
    n = len(record.checkpoints)
    numbers, along = axis_of_names(record.checkpoints)
    shares = [Series(numbers, record.reldec, "RelDec (decoder)")]
    if record.relie is not None:
        shares.append(Series(numbers, record.relie, "RelIE (effect)"))
    bins = len(record.two_ended)
    middles = [(place + 0.5) / bins for place in range(bins)]
    panels = [
        Panel(
            [Series(middles, record.two_ended)],
            Axis(f"RelDec: 0 {record.checkpoints[0]} alone, 1 {record.checkpoints[-1]} alone"),
            Axis("features", from_zero=True, is_count=True),
            "first against last checkpoint",
        ),
        Panel(shares, along, Axis("mean share", from_zero=True), "where features are at home"),
        Panel(
            [Series(numbers[1:], record.born[1:], "born"), Series(numbers[1:], record.died[1:], "died")],
            along,
            Axis("features", from_zero=True, is_count=True),
            "births and deaths",
        ),
    ]
    if record.ce_increase is not None:
        cost = Series(numbers, record.ce_increase, "with the reconstruction")
        panels.append(Panel([cost], along, Axis("rise of the loss, nats", from_zero=True), "what it misses"))
    return Plot([panels], title=f"crosscoder of {record.hook} over {n} checkpoints", width=3.1, height=2.4)


def circuits_plot(records: Sequence[CircuitRecord], *, title: str) -> Plot:
    """The metric, how faithful circuits are, how large, and what they have in common, over checkpoints."""
    places, along = axis_of_names([record.checkpoint for record in records])
    metric = [
        _series(places, [one.metric_clean for one in records], "the model"),
        _series(places, [one.metric_chance for one in records], "chance: frequency of the token"),
    ]
    faithful = [
        _series(places, [one.faithfulness for one in records], "faithfulness"),
        *(_series(places, [getattr(one, name) for one in records], "95 % interval") for name in ("low", "high")),
    ]
    common = [
        _series(places, [_of(getattr(one, where), what) for one in records], label)
        for where, what, label in (
            ("before", "weighted", "with the checkpoint before"),
            ("before", "shuffled_weighted", "shuffled"),
            ("last", "weighted", "with the last"),
            ("seed", "weighted", "with another seed's SAEs"),
        )
    ]
    size = [
        _series(places, [float(one.n_nodes) for one in records], "nodes"),
        _series(places, [float(one.n_edges) for one in records], "edges"),
    ]
    panels = [
        Panel(metric, along, Axis(records[0].unit), "metric"),
        Panel([one for one in faithful if len(one.x)], along, Axis("share kept", from_zero=True), "faithfulness"),
        Panel([one for one in common if len(one.x)], along, Axis("weighted Jaccard", from_zero=True), "in common"),
        Panel(size, along, Axis("number", from_zero=True), "size"),
    ]
    return Plot([[panel for panel in panels if panel.series]], title=title, width=3.1, height=2.4)


def _of(found: dict[str, float | None] | None, name: str) -> float | None:
    return None if found is None else found.get(name)


def _series(places: Sequence[Number], values: Sequence[float | None], label: str) -> Series:
    """A line through what is known."""
    known: list[tuple[Number, Number]] = [
        (place, value) for place, value in zip(places, values, strict=True) if value is not None
    ]
    return Series([x for x, _ in known], [y for _, y in known], label)
