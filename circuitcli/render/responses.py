"""Response curves: what reads a feature, and the metric, against the coefficient that the feature is multiplied by."""

from collections.abc import Sequence

from circuitcli.hookpoints import OUTPUT
from circuitcli.records import ResponseRecord
from circuitcli.render.plots import Axis, Panel, Plot, Series

# So many readers of a feature can be told apart by their lines.
DRAWN = 5
_COEFFICIENT = Axis("coefficient of the feature")


def plot(curves: Sequence[ResponseRecord], *, title: str) -> Plot:
    """A row for each feature: the activations of what reads it, if anything does, and the metric; the strongest readers
    are drawn."""
    rows = []
    are_read = any(curve.of != OUTPUT for curve in curves)
    for source in dict.fromkeys(curve.source for curve in curves):
        own = [curve for curve in curves if curve.source == source]
        metric = [curve for curve in own if curve.of == OUTPUT]
        readers = [curve for curve in own if curve.of != OUTPUT][:DRAWN]
        lines = [_line(curve, curve.of) for curve in readers]
        named = f"{source}: {'readers' if readers else 'no reader'}"
        row = [Panel(lines, _COEFFICIENT, Axis("activation"), named)] if are_read else []
        own_metric = [_line(curve, "") for curve in metric]
        rows.append([*row, Panel(own_metric, _COEFFICIENT, Axis(_unit(metric)), f"{source}: metric")])
    return Plot(rows, title=title, width=4.5, height=3.0)


def _unit(metric: Sequence[ResponseRecord]) -> str:
    return f"metric ({metric[0].unit})" if metric else "metric"


def _line(curve: ResponseRecord, label: str) -> Series:
    return Series(curve.coefficients, curve.values, label)
