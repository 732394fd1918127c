"""Heat maps: a number for each pair of two settings, as colour and as text; what is undefined is hatched, no zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.render.plots import Number, saved, styled
from circuitcli.render.text import visible, width
from circuitcli.runs import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a cell, and of what stands around the cells; points of the text in a cell.
_CELL, _AROUND, _TEXT = (0.36, 0.26), (1.5, 0.95), 6.5
# Of few rows the cells are higher, so that the labels beside them have room.
_ROWS = 4
# Columns of a label for which there is room in any case.
_SHORT = 7
# Of a title, which is not to be cut off where there are few columns.
_LETTER = 0.095
# From dark to light; where zero is white, blue above it and red below, as in pictures of circuits.
_COLOURS, _SIGNED, _ABOVE, _NAN = "viridis", "RdBu", "Blues", "#ffffff"
# Of the colour of a cell: where it is lighter its text is dark.
_LIGHT = 0.18


@dataclass(frozen=True)
class HeatMap:
    """One map: ``values`` by row and column, None where there is none; ``marked`` cells get an x behind the number.

    low, high: the ends of the scale, by default those of the values. is_log: the scale has decades. is_signed: zero is
    white, and the middle where there are numbers below it. texts: what stands in the cells instead of numbers. label:
    of the scale, with its unit.
    """

    title: str
    values: Sequence[Sequence[Number | None]]
    marked: Sequence[Sequence[bool]] = ()
    low: Number | None = None
    high: Number | None = None
    is_log: bool = False
    is_signed: bool = False
    texts: Sequence[Sequence[str]] = ()
    label: str = ""


@dataclass(frozen=True)
class HeatMaps:
    """Maps over the same rows, the first of which is drawn lowest, and columns; two beside each other.

    cell: width and height of a cell in inches.
    """

    maps: Sequence[HeatMap]
    columns: Sequence[str]
    rows: Sequence[str]
    x: str = ""
    y: str = ""
    title: str = ""
    cell: tuple[float, float] = _CELL


def write_heat_maps(drawn: HeatMaps, path: Path, *, dpi: int = 96) -> None:
    """Write the maps in the form that the suffix names, one of ``plots.SUFFIXES``."""
    with atomic(path, "wb") as stream:
        with styled():
            stream.write(saved(draw_heat_maps(drawn), path.suffix.lower(), dpi=dpi))


def draw_heat_maps(drawn: HeatMaps) -> "Figure":
    """The maps as matplotlib's own figure."""
    from matplotlib.figure import Figure

    n_across = min(2, len(drawn.maps))
    n_down = -(-len(drawn.maps) // n_across)
    size = [_around(drawn.rows, 0) + drawn.cell[0] * len(drawn.columns), _around(drawn.columns, 1)]
    size[1] += drawn.cell[1] * max(len(drawn.rows), _ROWS)
    titles = [*(one.title for one in drawn.maps), drawn.title[: -(-len(drawn.title) // n_across)]]
    size[0] = max(size[0], _LETTER * max(map(width, titles)))
    figure = Figure(figsize=(n_across * size[0], n_down * size[1] + 0.3), layout="constrained")
    grid = figure.subplots(n_down, n_across, squeeze=False).flatten()
    for axes, one in zip(grid, drawn.maps, strict=False):
        _fill(figure, axes, one, drawn)
    for axes in grid[len(drawn.maps) :]:
        axes.set_axis_off()
    figure.suptitle(visible(drawn.title), x=0.01, ha="left")
    return figure


def _around(labels: Sequence[str], axis: int) -> float:
    """Inches beside the cells: more where labels are long."""
    return _AROUND[axis] + 0.06 * max(0, max(map(width, labels), default=0) - _SHORT)


def _fill(figure: "Figure", axes: "Axes", one: HeatMap, drawn: HeatMaps) -> None:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    cells = [[_shown(value, one) for value in row] for row in one.values]
    shown = [value for row in cells for value in row if isfinite(value)]
    low = min(shown, default=0) if one.low is None else one.low
    high = max(shown, default=1) if one.high is None else one.high
    is_below = one.is_signed and low < 0
    if one.is_signed:
        high = max(abs(low), abs(high))
        low = -high if is_below else 0
    scale = LogNorm(low, max(high, low * 1.001)) if one.is_log and shown else Normalize(low, max(high, low + 1e-9))
    axes.set_facecolor(_NAN)
    colours = _SIGNED if is_below else _ABOVE if one.is_signed else _COLOURS
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=colours, norm=scale)
    axes.grid(visible=False)
    axes.set_title(visible(one.title))
    columns = [visible(text) for text in drawn.columns]
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(drawn.rows)), [visible(text) for text in drawn.rows])
    axes.set_xlabel(visible(drawn.x))
    axes.set_ylabel(visible(drawn.y))
    bar = figure.colorbar(image, ax=axes, pad=0.02, label=visible(one.label))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            is_marked = bool(one.marked) and one.marked[row][column]
            if isfinite(value):
                text = one.texts[row][column] if one.texts else short(value) + ("×" if is_marked else "")
                _write(axes, (column, row), text, colour=image.cmap(float(scale(value))))
            else:
                _hatch(axes, (column, row))


def _shown(value: Number | None, one: HeatMap) -> float:
    """The value where the scale has a place for it, else NaN."""
    has_place = value is not None and isfinite(value) and (value > 0 or not one.is_log)
    return float(value) if value is not None and has_place else nan


def _write(axes: "Axes", place: tuple[int, int], text: str, *, colour: Sequence[float]) -> None:
    ink = "black" if _luminance(colour) > _LIGHT else "white"
    axes.text(*place, visible(text), ha="center", va="center", fontsize=_TEXT, color=ink)


def _luminance(colour: Sequence[float]) -> float:
    """How light a colour is, of the WCAG: above 0.179 black text has the larger contrast."""
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hatch(axes: "Axes", place: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    corner = (place[0] - 0.5, place[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="#aaaaaa", linewidth=0))


def short(value: Number) -> str:
    """A number in about four letters."""
    if not value:
        return "0"
    if 0 < abs(value) < 0.005 or abs(value) >= 10000:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2f}".removeprefix("0") if abs(value) < 10 else f"{value:.0f}"
