"""``circuit render --curves``: how the run's autoencoders learned. Needs no torch and no model."""

from collections.abc import Iterable
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.records import FigureRecord, Record
from circuitcli.render.curves import find_curves, plot
from circuitcli.render.plots import SUFFIXES, svg, write_plot
from circuitcli.render.write import STDOUT, Writer
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request

SAES = "saes"
DEFAULT = Path("figures", "curves.svg")


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the training curves of all the run's autoencoders, also of those that are still trained.

    Files go where the settings say, by default to RUN/figures/curves.svg; ``-`` is SVG on stdout. Raises InputError if
    nothing was trained, SettingsError for a file that is no .svg, .png or .pdf.
    """
    outputs = checked_curves(request.settings.render.output) or [str(request.run.path / DEFAULT)]
    curves = find_curves(request.run.path / SAES)
    if not curves:
        raise InputError(f"{request.run.path} holds no training", hint="run `circuit train` before it")
    drawing = plot(curves, title=f"Training in {request.run.path.name}")
    for name in outputs:
        if name == STDOUT:
            stdout.write(svg(drawing))
        else:
            write_plot(drawing, Path(name), dpi=request.settings.render.dpi)
    return [FigureRecord(path=recorded(Path(name), request.run.path)) for name in outputs if name != STDOUT]


def checked_curves(outputs: Iterable[str]) -> list[str]:
    """The outputs. Raises SettingsError for a suffix that no plot is written with."""
    names = list(outputs)
    for name in names:
        if name != STDOUT and Path(name).suffix.lower() not in SUFFIXES:
            endings = " ".join(SUFFIXES)
            raise SettingsError(f"cannot draw curves as '{name}'", hint=f"files end in {endings}; - is SVG on stdout")
    return names
