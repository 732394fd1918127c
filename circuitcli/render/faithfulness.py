"""Faithfulness against the number of nodes or edges: a plot of the curves of a test."""

from collections.abc import Iterator, Sequence

from circuitcli.records import CurveRecord
from circuitcli.render.plots import Axis, Panel, Plot, Series

_KEPT = Axis("faithfulness")


def plot(curves: Sequence[CurveRecord], *, title: str) -> Plot:
    """A panel for each curve, with its interval and the line of the model itself; areas stand above."""
    return Plot([[_panel(curve) for curve in curves]], title=title, width=4.2, height=2.8)


def _panel(curve: CurveRecord) -> Panel:
    what = f"{curve.of} of the graph" if curve.ranked == "graph" else f"all {curve.of}"
    heading = f"{what}: CMD {curve.cmd:.3g}, CPR {curve.cpr:.3g} of {curve.best_cpr:.3g}"
    return Panel([*_series(curve)], Axis(f"number of {curve.of}", "log", is_count=True), _KEPT, heading)


def _series(curve: CurveRecord) -> Iterator[Series]:
    yield Series(curve.counts, curve.values, "circuits of the strongest")
    for bound in (curve.low, curve.high):
        if bound is not None:
            yield Series(curve.counts, bound, "95 % interval over prompts")
    ends = (curve.counts[0], curve.counts[-1])
    yield Series(ends, (1.0, 1.0), "the model")
