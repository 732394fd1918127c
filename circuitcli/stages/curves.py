"""``circuit render --curves``: how the run's autoencoders learned. Needs no torch and no model."""

from collections.abc import Iterable
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.records import FigureRecord, Record
from circuitcli.render.curves import figure, find_curves
from circuitcli.render.plot import svg
from circuitcli.render.write import STDOUT, Writer
from circuitcli.runs import atomic
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request

SAES = "saes"
DEFAULT = Path("figures", "curves.svg")


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the training curves of all the run's autoencoders, also of those that are still trained.

    Files go where the settings say, by default to RUN/figures/curves.svg; ``-`` is SVG on stdout. Raises InputError if
    nothing was trained, SettingsError for a file that is no .svg.
    """
    outputs = checked_curves(request.settings.render.output) or [str(request.run.path / DEFAULT)]
    curves = find_curves(request.run.path / SAES)
    if not curves:
        raise InputError(f"{request.run.path} holds no training", hint="run `circuit train` before it")
    text = svg(figure(curves, title=f"Training in {request.run.path.name}"))
    for name in outputs:
        if name == STDOUT:
            stdout.write(text)
        else:
            with atomic(Path(name)) as stream:
                stream.write(text)
    return [FigureRecord(path=recorded(Path(name), request.run.path)) for name in outputs if name != STDOUT]


def checked_curves(outputs: Iterable[str]) -> list[str]:
    """The outputs. Raises SettingsError for a file that is no .svg."""
    names = list(outputs)
    for name in names:
        if name != STDOUT and Path(name).suffix.lower() != ".svg":
            raise SettingsError(
                f"cannot draw curves as '{name}'", hint="name a file that ends in .svg, or - for stdout"
            )
    return names
