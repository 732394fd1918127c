"""Plots that a stage draws of what it measured."""

from circuitcli.records import FigureRecord
from circuitcli.render.plots import Plot, write_plot
from circuitcli.runs import Run

FOLDER = "figures"


def drawn(run: Run, name: str, plot: Plot | None) -> list[FigureRecord]:
    """The record of a plot, drawn as RUN/figures/NAME.svg; none without a plot."""
    if plot is None:
        return []
    path = f"{FOLDER}/{name}.svg"
    write_plot(plot, run.path / path)
    return [FigureRecord(path=path)]
