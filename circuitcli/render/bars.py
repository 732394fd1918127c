"""Bars beside names, several panels of them: how coders compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitcli.records import SyntheticRecord
from circuitcli.render.plots import COLOURS, saved, styled
from circuitcli.render.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches that a bar takes, and what stands above and below all.
_BAR, _MARGIN, _PANEL = 0.24, 0.9, 2.6
# Of what the bars are about: SAEs, baselines, a ceiling.
_LOOKS = {"sae": (COLOURS[1], ""), "baseline": ("#bbbbbb", ""), "ceiling": ("#ffffff", "////")}
_SCORES = {"f1": "F1", "mcc": "MCC", "explained_variance": "explained variance", "l0": "active (L0)"}


@dataclass(frozen=True)
class Bars:
    """One panel for each title, one bar for each name; None where there is none. looks: a fill and hatching each."""

    names: Sequence[str]
    panels: Sequence[tuple[str, Sequence[float | int | None]]]
    looks: Sequence[tuple[str, str]]
    title: str = ""


def found_bars(records: Sequence[SyntheticRecord], *, title: str) -> Bars:
    """F1, MCC, explained variance and L0 of each coder of a benchmark with known features."""
    panels = [(shown, [getattr(record, name) for record in records]) for name, shown in _SCORES.items()]
    looks = [_LOOKS.get(record.group, _LOOKS["baseline"]) for record in records]
    return Bars([record.coder for record in records], panels, looks, title)


def bars_picture(bars: Bars, suffix: str, *, dpi: int = 96) -> bytes:
    """The bytes of a file with this suffix."""
    with styled():
        return saved(draw_bars(bars), suffix, dpi=dpi)


def draw_bars(bars: Bars) -> "Figure":
    """The bars as matplotlib's own figure; each has its number behind it, and none is cut off below zero."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(layout="constrained")
        figure.set_size_inches(_PANEL * len(bars.panels) + 0.8, _BAR * len(bars.names) + _MARGIN)
        figure.suptitle(visible(bars.title), x=0.01, ha="left")
        grid = figure.subplots(1, len(bars.panels), squeeze=False, sharey=True)
        places = range(len(bars.names))
        for axes, (name, values) in zip(grid[0], bars.panels, strict=True):
            axes.set_title(visible(name))
            for place, value, (fill, hatch) in zip(places, values, bars.looks, strict=True):
                if value is not None:
                    axes.barh(place, value, color=fill, hatch=hatch, edgecolor="#444444", linewidth=0.6)
                    axes.annotate(
                        f"{value:.3g}",
                        (max(value, 0.0), place),
                        xytext=(3, 0),
                        textcoords="offset points",
                        va="center",
                        annotation_clip=False,
                    )
            axes.axvline(0, color="#444444", linewidth=0.8)
            axes.set_xlim(*_limits([value for value in values if value is not None]))
            axes.locator_params(axis="x", nbins=5)
        grid[0][0].set_yticks(places, [visible(name) for name in bars.names])
        grid[0][0].invert_yaxis()
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest bar to the highest with room for its number, which is as wide for a short bar."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    span = high - low or 1.0
    return low - 0.06 * span * (low < 0), high + 0.36 * span
