"""Whatever matplotlib draws, written by the suffix of its file."""

from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.render.bars import Bars, draw_bars
from circuitcli.render.heatmaps import HeatMaps, draw_heat_maps
from circuitcli.render.plots import Plot, draw, saved, styled
from circuitcli.runs import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Chart = Plot | HeatMaps | Bars


def draw_chart(chart: Chart) -> "Figure":
    """Any chart as matplotlib's own figure."""
    with styled():
        if isinstance(chart, Plot):
            return draw(chart)
        return draw_bars(chart) if isinstance(chart, Bars) else draw_heat_maps(chart)


def chart_picture(chart: Chart, suffix: str, *, dpi: int = 96) -> bytes:
    """The bytes of a file with this suffix, one of ``plots.SUFFIXES``."""
    with styled():
        return saved(draw_chart(chart), suffix, dpi=dpi)


def write_chart(chart: Chart, path: Path, *, dpi: int = 96) -> None:
    """Write the file. Raises InputError where it cannot be written."""
    with atomic(path, "wb") as stream:
        stream.write(chart_picture(chart, path.suffix.lower(), dpi=dpi))
