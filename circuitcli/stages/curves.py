"""``circuit render --curves``, ``--sweep`` and ``--interaction``: how autoencoders learned, and how they compare.

Needs no torch and no model.
"""

from collections.abc import Iterable
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.reading import as_path
from circuitcli.records import FigureRecord, Record, SweepRecord
from circuitcli.render.curves import find_curves, plot
from circuitcli.render.measured import interaction_sets
from circuitcli.render.pareto import pareto
from circuitcli.render.plots import SUFFIXES, Plot, svg, write_plot
from circuitcli.render.pretraining import plot_model
from circuitcli.render.write import STDOUT, Writer
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request
from circuitcli.training.log import METRICS, read_metrics
from circuitcli.validation.interaction_sets import compared, read_sets

SAES = "saes"
FIGURES = "figures"


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the training curves of all the run's autoencoders, or of the model whose training the run is, also of those
    that are still trained.

    Files go where the settings say, by default to RUN/figures/curves.svg; ``-`` is SVG on stdout. Raises InputError if
    nothing was trained, SettingsError for a file that is no .svg, .png or .pdf.
    """
    outputs = checked_curves(request.settings.render.output)
    if lines := read_metrics(request.run.path / METRICS):
        drawing = plot_model(lines, title=f"Training of {request.run.path.absolute().parent.name}")
    elif curves := find_curves(request.run.path / SAES):
        drawing = plot(curves, title=f"Training in {request.run.path.name}")
    else:
        raise InputError(f"{request.run.path} holds no training", hint="run `circuit train` before it")
    return _write(drawing, request, outputs, default="curves.svg", stdout=stdout)


def run_sweep(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw how the variants of a sweep compare, as `run` draws curves; by default to RUN/figures/sweep.svg.

    Raises InputError if there are no records of a sweep.
    """
    outputs = checked_curves(request.settings.render.output)
    trained = request.records.of(SweepRecord)
    if not trained:
        hint = "run `circuit train --sweep NAME=VALUE,VALUE` before it"
        raise InputError(f"{request.run.path} holds no sweep", hint=hint)
    drawing = pareto(trained, title=f"Sweep in {request.run.path.name}")
    return _write(drawing, request, outputs, default="sweep.svg", stdout=stdout)


def run_interactions(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw how few edges sets of SAEs need, beside each other, and compare each with the first; by default to
    RUN/figures/interactions.svg.

    Raises InputError for files that are no such reports or have nothing in common, SettingsError for a single one.
    """
    settings = request.settings
    outputs = checked_curves(settings.render.output)
    paths = [as_path(name) for name in settings.render.interaction]
    if len(paths) < 2:
        raise SettingsError("--interaction compares two reports or more", hint="name them with a comma between")
    first, *others = sets = read_sets(paths)
    draws = {"bootstrap": settings.validation.bootstrap, "seed": settings.seed}
    made = [record for other in others for record in compared(other, first, **draws)]
    if not request.run.exists and not outputs:
        raise SettingsError("there is no run whose figures the plot could join", hint="name a file with -o")
    curves = {one.name: [measured.record for measured in one.pairs] for one in sets}
    drawing = interaction_sets(curves, made)
    return [*made, *_write(drawing, request, outputs, default="interactions.svg", stdout=stdout)]


def _write(drawing: Plot, request: Request, outputs: list[str], *, default: str, stdout: Writer) -> list[Record]:
    names = outputs or [str(request.run.path / FIGURES / default)]
    for name in names:
        if name == STDOUT:
            stdout.write(svg(drawing))
        else:
            write_plot(drawing, Path(name), dpi=request.settings.render.dpi)
    return [FigureRecord(path=recorded(Path(name), request.run.path)) for name in names if name != STDOUT]


def checked_curves(outputs: Iterable[str]) -> list[str]:
    """The outputs. Raises SettingsError for a suffix that no plot is written with."""
    names = list(outputs)
    for name in names:
        if name != STDOUT and Path(name).suffix.lower() not in SUFFIXES:
            endings = " ".join(SUFFIXES)
            raise SettingsError(f"cannot draw a plot as '{name}'", hint=f"files end in {endings}; - is SVG on stdout")
    return names
