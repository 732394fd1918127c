"""Sparsity against quality: the SAEs of a sweep beside each other."""

from collections.abc import Sequence

from circuitcli.records import SweepRecord
from circuitcli.records.coders import TrainedRecord
from circuitcli.render.plots import Axis, Panel, Plot, Series

_L0 = Axis("active features per token (L0)", "log")
_SCORES = {"explained_variance": "explained variance (share)", "loss_recovered": "loss recovered (share)"}


def pareto(trained: Sequence[SweepRecord], *, title: str) -> Plot:
    """L0 against explained variance, and against loss recovered where it was measured; a row for each hook point.

    Points are named by their value of the first setting that is swept, and joined where all others are the same.
    """
    measured = [name for name in _SCORES if any(getattr(record, name) is not None for record in trained)]
    rows = []
    for hook in dict.fromkeys(record.hook for record in trained):
        own = [record for record in trained if record.hook == hook]
        rows.append([Panel(_lines(own, name), _L0, Axis(_SCORES[name]), hook) for name in measured or _SCORES])
    return Plot(rows, title=title, width=4.5, height=3.0)


def coders_plot(coders: Sequence[TrainedRecord], *, title: str) -> Plot | None:
    """L0 against explained variance, and against loss recovered where it was measured: a point for each coder. None
    where nothing was measured."""
    panels = []
    for name, told in _SCORES.items():
        points = [(coder.places, coder.l0, getattr(coder, name)) for coder in coders]
        series = [Series((x,), (y,), label) for label, x, y in points if x is not None and y is not None]
        if series:
            panels.append(Panel(series, _L0, Axis(told), told.partition(" (")[0]))
    return Plot([panels], title=title, width=4.5, height=3.0) if panels else None


def _lines(trained: Sequence[SweepRecord], score: str) -> list[Series]:
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for record in trained:
        first, _, others = record.variant.partition(",")
        value = getattr(record, score)
        if record.l0 is not None and value is not None:
            lines.setdefault(others, []).append((record.l0, value, first.partition("=")[2]))
    return [_line(sorted(points), others) for others, points in lines.items()]


def _line(points: Sequence[tuple[float, float, str]], label: str) -> Series:
    x, y, names = zip(*points, strict=True)
    return Series(x, y, label, names)
