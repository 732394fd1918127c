"""Plots of what `circuit validate` measures beside scores: stability, interaction, steering."""

from collections.abc import Iterator, Mapping, Sequence

from circuitcli.records import InteractionComparisonRecord, InteractionRecord, StabilityRecord, SteeringRecord
from circuitcli.render.plots import Axis, Number, Panel, Plot, Series

_SHARE = Axis("share of pairs with no more", from_zero=True)
_FOUND = {"bootstrap": "bootstrap samples", "halves": "halves", "seed": "other SAEs"}


def stability(records: Sequence[StabilityRecord], *, title: str) -> Plot | None:
    """Two panels, of nodes and edges: for each way in which the circuit was found again the share of pairs of circuits
    that have at most so much in common; None where there is nothing to draw."""
    found = [record for record in records if record.of in _FOUND]
    if not found:
        return None
    panels = [
        Panel(
            [*_distributions([record for record in found if record.what == what])],
            Axis("in common (Jaccard)", from_zero=True),
            _SHARE,
            what,
        )
        for what in ("nodes", "edges")
    ]
    return Plot([panels], title=title, width=3.4, height=2.6)


def _distributions(records: Sequence[StabilityRecord]) -> Iterator[Series]:
    for record in records:
        x, y = _steps(record.values)
        yield Series(x, y, " ".join(filter(None, (_FOUND[record.of], record.coders))))
    if records:
        yield Series((records[0].bar, records[0].bar), (0.0, 1.0), f"proposed bar ({records[0].bar:g})")


def _steps(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of the empirical distribution function, from 0 to 1."""
    ordered = sorted(values)
    x, y = [0.0], [0.0]
    for number, value in enumerate(ordered):
        x += [value, value]
        y += [number / len(ordered), (number + 1) / len(ordered)]
    return [*x, 1.0], [*y, 1.0]


def interactions(records: Sequence[InteractionRecord]) -> Plot:
    """For each pair of hook points the curve over the edges kept, and over their share of all possible ones, each with
    its area above."""
    return Plot([_row(record) for record in records], title=_title(records), width=3.6, height=2.8)


def _title(records: Sequence[InteractionRecord]) -> str:
    if len(records) == 1:
        return f"Edges from {records[0].source} to {records[0].target}"
    return f"Edges between the features of two hook points: {records[0].name}"


_EDGES = {"random": "edges drawn at random", "random-live": "live edges drawn at random"}


def _row(record: InteractionRecord) -> list[Panel]:
    absolute, relative = (_value(area) for area in (record.absolute, record.relative))
    by_share = [n / record.n_possible for n in record.n_edges]
    kl = Axis("KL(model || edges), nats a token", from_zero=True)
    pair = f"{record.source} to {record.target}: "
    # An axis by decades has no place for no edge.
    skip = 1 if record.n_edges[0] == 0 else 0
    return [
        Panel(
            [*_curve(record, record.n_edges, skip=skip)],
            Axis("edges kept", "log", is_count=True),
            kl,
            f"{pair}area {absolute:.4g} nats x edges",
        ),
        Panel(
            [*_curve(record, by_share, skip=skip)],
            Axis("share of possible edges", "log"),
            kl,
            f"{pair}relative {relative:.4g} nats",
        ),
    ]


def _curve(record: InteractionRecord, x: Sequence[Number], *, skip: int) -> Iterator[Series]:
    yield Series(x[skip:], record.kl[skip:], _EDGES.get(record.order or "", "edges of the largest attribution"))
    for bound in (record.kl_low, record.kl_high):
        if bound is not None:
            yield Series(x[skip:], bound[skip:], "95 % interval over prompts")
    yield Series((x[skip], x[-1]), (record.floor, record.floor), "all edges: what the SAEs miss")


_MOST_TOLD = 2


def interaction_sets(
    curves: Mapping[str, Sequence[InteractionRecord]], compared: Sequence[InteractionComparisonRecord]
) -> Plot:
    """A row for each pair of hook points that is compared: the curves of all sets over the edges kept and over their
    share of all possible ones, with the change of each set's area against the first one's."""
    pairs = list(dict.fromkeys((record.source, record.target) for record in compared if record.source is not None))
    rows = []
    for pair in pairs:
        found = {name: one for name, records in curves.items() for one in records if (one.source, one.target) == pair}
        own = [record for record in compared if (record.source, record.target) == pair]
        rows.append([_beside(found, own, pair, is_share=is_share) for is_share in (False, True)])
    first = next(iter(curves))
    return Plot(rows, title=f"Edges that carry the model: areas against {first}", width=4.2, height=2.6)


def _beside(
    found: Mapping[str, InteractionRecord],
    compared: Sequence[InteractionComparisonRecord],
    pair: tuple[str | None, str | None],
    *,
    is_share: bool,
) -> Panel:
    series = []
    for name, record in found.items():
        skip = 1 if record.n_edges[0] == 0 else 0
        x = [n / record.n_possible if is_share else n for n in record.n_edges]
        series.append(Series(x[skip:], record.kl[skip:], name))
    told = [_less(record.relative if is_share else record.absolute) for record in compared]
    axis = Axis("share of possible edges", "log") if is_share else Axis("edges kept", "log", is_count=True)
    kind = "relative" if is_share else "absolute"
    # Of many sets there is no room: the records tell.
    title = f"{pair[0]} to {pair[1]}: {kind} {', '.join(told) if len(told) <= _MOST_TOLD else 'area'}"
    return Panel(series, axis, Axis("KL(model || edges), nats a token", from_zero=True), title)


def _less(score: dict[str, float | None]) -> str:
    value, error = score.get("improvement"), score.get("error")
    if value is None:
        return "-"
    return f"{-value:+.1f}" + ("" if error is None else f" \u00b1 {error:.1f}") + " %"


def _value(area: dict[str, float | None]) -> float:
    return area.get("value") or 0.0


def steering(record: SteeringRecord, *, title: str) -> Plot:
    """The divergence of the next token before each token of both continuations."""
    kl, tokens = Axis("KL(clean || steered), nats", from_zero=True), Axis("tokens behind the prompt", from_zero=True)
    sides = (("along the steered text", record.kl_steered), ("along the clean text", record.kl_clean))
    lines = [Series([*range(1, len(values) + 1)], values, label) for label, values in sides]
    return Plot([[Panel(lines, tokens, kl, _scaled(record))]], title=title, width=6.4, height=2.8)


def _scaled(record: SteeringRecord, most: int = 4) -> str:
    named = [f"{name} x {factor:g}" for name, factor in record.factors.items()]
    return ", ".join(named[:most]) + (f", and {len(named) - most} more" if len(named) > most else "")
