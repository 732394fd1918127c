"""Plots of numbers by matplotlib, as SVG, PNG or PDF: panels of lines and named points, readable in black and white.

The same numbers give the same bytes with the same matplotlib: no date, no random names, none of the user's own styles.
Matplotlib is imported when something is drawn, and without pyplot, which keeps figures and would choose a window.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuitcli.render.fonts import with_fonts
from circuitcli.render.text import visible
from circuitcli.runs import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
# Where types are checked at run time, an int is no float.
Number = float | int
# With "auto", an axis is logarithmic if all numbers are positive and the largest is so many times the smallest.
LOG_RATIO = 50.0
# A logarithmic axis over so many decades labels only some of them.
MOST_DECADES = 6
# What is further from zero has no place, as infinities have none; what is nearer is zero: neither overflows.
LARGEST, SMALLEST = 1e250, 1e-250
# Of different lightness, and for those who do not see colours, dashes and marks differ too.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (4, 1, 1, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v")
NOT_FINITE = "not finite"
_WARNING = "#d3222a"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # As TrueType, which programs for drawing can edit and printers take.
    "pdf.fonttype": 42,
    "svg.hashsalt": "circuit",
    "text.parse_math": False,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "legend.handlelength": 3.5,
}
_METADATA = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}
# Inches: what a line of the legend takes, and a letter of the widest label, with a sample of its line.
_LEGEND_LINE, _LETTER, _SAMPLE = 0.17, 0.075, 0.65
# Where the name of a point stands, in points from it; those of several lines go to different sides.
_SIDES = ((-5, 4, "right"), (6, -9, "left"), (0, -13, "center"), (0, 7, "center"))


@dataclass(frozen=True)
class Axis:
    """What one axis shows: its label, with the unit, and its scale.

    scale: "log" holds where all numbers are positive, "auto" where they span decades besides. from_zero: a linear axis
    of numbers that are not negative begins at zero. is_count: ticks are written 500k, 2M.
    """

    label: str = ""
    scale: Literal["linear", "log", "auto"] = "linear"
    from_zero: bool = False
    is_count: bool = False


@dataclass(frozen=True)
class Series:
    """A line through points; where they have ``names``, each is marked and its name stands beside it.

    One ``label`` has one look in the whole plot and one entry in its legend; without a label there is no entry.
    """

    x: Sequence[Number]
    y: Sequence[Number]
    label: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Band:
    """What lies between two lines, in the colour of the series with this label, or else of the first."""

    x: Sequence[Number]
    low: Sequence[Number]
    high: Sequence[Number]
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes and its lines, with shaded bands behind them."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    title: str = ""
    bands: Sequence[Band] = ()


@dataclass(frozen=True)
class Plot:
    """Rows of panels, all of one length; with ``shares`` those below each other have the same axes."""

    rows: Sequence[Sequence[Panel]]
    title: str = ""
    shares: bool = False
    width: float = 3.0
    """Width of a panel in inches, with its labels."""
    height: float = 2.1


def svg(plot: Plot) -> str:
    """The SVG document; its text is text."""
    return picture(plot, ".svg").decode()


def write_plot(plot: Plot, path: Path, *, dpi: int = 96) -> None:
    """Write the plot in the form that the suffix names, one of ``SUFFIXES``; dpi: resolution of a PNG."""
    with atomic(path, "wb") as stream:
        stream.write(picture(plot, path.suffix.lower(), dpi=dpi))


def picture(plot: Plot, suffix: str, *, dpi: int = 96) -> bytes:
    """The bytes of a file with this suffix."""
    with styled():
        return saved(draw(plot), suffix, dpi=dpi)


def saved(figure: "Figure", suffix: str, *, dpi: int = 96) -> bytes:
    """The bytes of a file with this suffix, the same whenever it is drawn; to be called within `styled`."""
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix[1:], dpi=dpi, metadata=_METADATA[suffix])
    return with_fonts(stream.getvalue().decode()).encode() if suffix == ".svg" else stream.getvalue()


def saved_pages(figures: "Iterable[Figure]") -> bytes:
    """A PDF with a page for each figure, of its size; to be called within `styled`."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    with PdfPages(stream, metadata=_METADATA[".pdf"]) as pages:
        for figure in figures:
            pages.savefig(figure)
    return stream.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user's own settings for it say, but for this module's style."""
    with _quiet():
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing said of a home that cannot be written to, nor of letters that the font that comes along has not."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def draw(plot: Plot) -> "Figure":
    """The plot as matplotlib's own figure.

    What is not finite is left out of its line and marked by a red cross on the upper edge of the panel.
    """
    from matplotlib.figure import Figure

    with styled():
        columns = list(zip(*plot.rows, strict=True))
        figure = Figure(layout="constrained")
        grid = figure.subplots(len(plot.rows), len(columns), squeeze=False, sharex=_shared(plot), sharey=_shared(plot))
        looks = _looks(plot)
        for index, column in enumerate(columns):
            for panel, axes in zip(column, grid[:, index], strict=True):
                _fill(axes, panel, looks)
                _scale(axes, panel, column if plot.shares else [panel])
        width = plot.width * len(columns)
        n_lines = _head(figure, visible(plot.title), width)
        figure.set_size_inches(width, plot.height * len(plot.rows) + _LEGEND_LINE * n_lines)
    return figure


def _shared(plot: Plot) -> Literal["col", "none"]:
    return "col" if plot.shares else "none"


def _looks(plot: Plot) -> dict[str, int]:
    """A number for each label, from which its colour, dashes and marks come."""
    panels = [panel for row in plot.rows for panel in row]
    labels = dict.fromkeys(series.label for panel in panels for series in panel.series)
    labels |= dict.fromkeys(band.label for panel in panels for band in panel.bands)
    return {label: index for index, label in enumerate(label for label in labels if label)}


def _scale(axes: "Axes", panel: Panel, group: Sequence[Panel]) -> None:
    """Labels, kind of scale, ends, and how numbers are written; a group has one scale."""
    axes.set_title(visible(panel.title))
    every = [series for other in group for series in other.series]
    pairs = [pair for series in every for pair in zip(_places(series.x), _places(series.y), strict=True)]
    # A point without one of its numbers is not drawn, and a logarithmic axis needs one that is.
    drawn = [pair for pair in pairs if all(map(math.isfinite, pair))]
    _scale_one(axes, "x", panel.x, [x for x, _ in drawn])
    _scale_one(axes, "y", panel.y, [y for _, y in drawn])


def _scale_one(axes: "Axes", name: Literal["x", "y"], axis: Axis, values: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    view = axes.xaxis if name == "x" else axes.yaxis
    view.set_label_text(visible(axis.label))
    is_positive, ratio = min(values, default=0) > 0, max(values, default=0) / (min(values, default=0) or 1)
    if is_positive and (axis.scale == "log" or (axis.scale == "auto" and ratio > LOG_RATIO)):
        axes.set(**{f"{name}scale": "log"})
        # Of more decades than have room for their labels only some are labelled.
        is_long = ratio > 10 ** (MOST_DECADES + 0.5)
        most = {"numticks": MOST_DECADES} if is_long else {}
        view.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,), **most))
        is_short = is_long and axis.is_count
        view.set_major_formatter(EngFormatter(sep="") if is_short else StrMethodFormatter("{x:g}"))
    else:
        view.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=axis.is_count))
        view.set_major_formatter(EngFormatter(sep="") if axis.is_count else StrMethodFormatter("{x:.10g}"))
        if axis.from_zero and min(values, default=0) >= 0:
            axes.set(**{f"{name}lim": (0, 1.05 * max(values, default=0) or 1)})
    view.set_minor_formatter(NullFormatter())


def _places(values: Iterable[Number]) -> list[float]:
    """The numbers as floats, NaN for what no axis can show: infinities, whole numbers of hundreds of digits."""
    shown = (value if -LARGEST <= value <= LARGEST else math.nan for value in values)
    return [0.0 if abs(value) < SMALLEST else float(value) for value in shown]


def _shade(axes: "Axes", panel: Panel, looks: dict[str, int]) -> None:
    for band in panel.bands:
        colour, label = COLOURS[looks.get(band.label, 0) % len(COLOURS)], visible(band.label) if band.label else "_"
        low, high = _places(band.low), _places(band.high)
        axes.fill_between(_places(band.x), low, high, color=colour, alpha=0.2, linewidth=0, label=label)


def _fill(axes: "Axes", panel: Panel, looks: dict[str, int]) -> None:
    _shade(axes, panel, looks)
    for series in panel.series:
        look = looks.get(series.label, 0)
        x, y = _places(series.x), _places(series.y)
        colour, mark = COLOURS[look % len(COLOURS)], MARKS[look % len(MARKS)]
        marked = range(len(x)) if series.names else _alone(x, y)
        axes.plot(
            x,
            y,
            label=visible(series.label) if series.label else "_",
            color=colour,
            linestyle=DASHES[look % len(DASHES)],
            marker=mark if marked else "none",
            markevery=list(marked),
        )
        _name_points(axes, series, look)
        if lost := [at for at, value in zip(x, y, strict=True) if math.isfinite(at) and not math.isfinite(value)]:
            axes.plot(
                lost,
                [1.0] * len(lost),
                "x",
                color=_WARNING,
                label=NOT_FINITE,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )


def _name_points(axes: "Axes", series: Series, look: int) -> None:
    across, up, side = _SIDES[look % len(_SIDES)]
    if series.names:
        axes.margins(0.1)
    for name, x, y in zip(series.names, _places(series.x), _places(series.y), strict=False):
        if math.isfinite(x) and math.isfinite(y):
            axes.annotate(
                visible(name),
                (x, y),
                xytext=(across, up),
                textcoords="offset points",
                ha=side,
                color=COLOURS[look % len(COLOURS)],
            )


def _alone(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Points without a neighbour on their line, which no line would show."""
    there = [False, *(math.isfinite(a) and math.isfinite(b) for a, b in zip(x, y, strict=True)), False]
    return [at - 1 for at in range(1, len(there) - 1) if there[at] and not there[at - 1] and not there[at + 1]]


def _head(figure: "Figure", title: str, width: float) -> int:
    """The title and one legend above all panels; returns the number of lines that they take."""
    entries: dict[Any, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        figure.suptitle(title, x=0.01, ha="left")
        return 1
    if NOT_FINITE in entries:
        entries[NOT_FINITE] = entries.pop(NOT_FINITE)
    widest = _LETTER * max(map(len, entries)) + _SAMPLE
    n_columns = max(1, min(len(entries), int(width / widest)))
    legend = figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=n_columns, title=title, alignment="left"
    )
    legend.get_title().set(weight="bold", size=10)
    return math.ceil(len(entries) / n_columns) + 2
