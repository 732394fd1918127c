"""All files of one drawing, by suffix: .dot .svg .png .pdf .json .html, and ``-`` for DOT on stdout."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from circuitcli.errors import SettingsError, ToolError
from circuitcli.render.document import document, to_json
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import Drawing
from circuitcli.render.page import page
from circuitcli.render.picture import write_picture
from circuitcli.render.text import visible
from circuitcli.runs import atomic
from circuitcli.settings.render import RenderSettings

SUFFIXES = (".dot", ".svg", ".png", ".pdf", ".json", ".html")
PICTURES = (".svg", ".png", ".pdf")
STDOUT = "-"


@runtime_checkable
class Writer(Protocol):
    """Where text can be written: stdout, or a text in memory."""

    def write(self, text: str, /) -> int:
        """Write the text and return its length."""


def checked(outputs: Iterable[str]) -> list[str]:
    """The outputs, each once. Raises SettingsError for a suffix that nothing draws."""
    names = list(dict.fromkeys(outputs))
    for name in names:
        if name != STDOUT and Path(name).suffix.lower() not in SUFFIXES:
            endings = " ".join(SUFFIXES)
            raise SettingsError(f"cannot draw '{name}'", hint=f"files end in {endings}; - is DOT on stdout")
    return names


def write(
    drawing: Drawing,
    outputs: Iterable[str],
    settings: RenderSettings,
    *,
    stdout: Writer,
    pictured: Drawing | None = None,
) -> list[Path]:
    """Write all outputs and return the files' paths as given.

    pictured: what pictures show, where that is another drawing than the one of the page.

    Files that need no other program are written first, so that they are there even if `ToolError` is raised because
    ``dot`` is missing; the picture's DOT source is then written in its place. Raises SettingsError for an unknown
    suffix before anything is written.
    """
    names = checked(outputs)
    source = dot_source(pictured or drawing, settings)
    for name in sorted(names, key=lambda name: Path(name).suffix.lower() in PICTURES):
        if name == STDOUT:
            stdout.write(source)
        else:
            _write_file(drawing, source, Path(name), settings)
    return [Path(name) for name in names if name != STDOUT]


def _write_file(drawing: Drawing, source: str, path: Path, settings: RenderSettings) -> None:
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        try:
            write_picture(source, path, dpi=settings.dpi, paper=settings.tile, title=visible(drawing.graph.head.name))
        except ToolError:
            # Whoever has no dot here can still draw the source elsewhere.
            _write_file(drawing, source, path.with_suffix(".dot"), settings)
            raise
        return
    with atomic(path) as stream:
        if suffix == ".dot":
            stream.write(source)
        elif suffix == ".json":
            stream.write(to_json(document(drawing, path=path), indent=1) + "\n")
        else:
            stream.write(page(drawing, path=path))
