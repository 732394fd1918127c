"""Faithfulness against the number of nodes or edges, and its distance from the model: the curves of a test."""

from collections.abc import Iterator, Sequence

from circuitcli.records import CurveRecord
from circuitcli.render.plots import Axis, Band, Panel, Plot, Series

_KEPT, _DISTANCE = Axis("faithfulness"), Axis("|1 − faithfulness|", from_zero=True)
_INTERVAL, _CIRCUITS = "95 % interval over prompts", "circuits of the strongest"


def plot(curves: Sequence[CurveRecord], *, title: str) -> Plot:
    """For each curve faithfulness, with its interval and the line of the model itself, and below its distance from the
    model over the share of all nodes or edges: the shaded area is the CMD."""
    rows = [[_faithfulness(curve) for curve in curves], [_distance(curve) for curve in curves]]
    return Plot(rows, title=title, width=4.2, height=2.6)


def _faithfulness(curve: CurveRecord) -> Panel:
    heading = f"{_what(curve)}: CPR {curve.cpr:.3g} of {curve.best_cpr:.3g}"
    return Panel(
        [*_series(curve)], Axis(f"number of {curve.of}", "log", is_count=True), _KEPT, heading, [*_interval(curve)]
    )


def _what(curve: CurveRecord) -> str:
    return f"{curve.of} of the graph" if curve.ranked == "graph" else f"all {curve.of}"


def _series(curve: CurveRecord) -> Iterator[Series]:
    yield Series(curve.counts, curve.values, _CIRCUITS)
    ends = (curve.counts[0], curve.counts[-1])
    yield Series(ends, (1.0, 1.0), "the model")


def _interval(curve: CurveRecord) -> Iterator[Band]:
    if curve.low is not None and curve.high is not None:
        yield Band(curve.counts, curve.low, curve.high, _INTERVAL)


def _distance(curve: CurveRecord) -> Panel:
    bounds = "" if curve.cmd_low is None else f" [{curve.cmd_low:.3g}, {curve.cmd_high:.3g}]"
    heading = f"{_what(curve)}: CMD {curve.cmd:.3g}{bounds}, by logarithm {curve.cmd_log:.3g}"
    shares = [count / max(curve.total, 1) for count in curve.counts]
    distance = [abs(1 - value) for value in curve.values]
    area = Band(shares, [0.0] * len(shares), distance, "CMD: the area")
    return Panel(
        [Series(shares, distance, _CIRCUITS)],
        Axis(f"share of all {curve.of}", from_zero=True),
        _DISTANCE,
        heading,
        [area],
    )
