"""All files of one drawing, by suffix or in a format that was asked for, and ``-`` for stdout."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from circuitcli.errors import SettingsError, ToolError
from circuitcli.render import sharing
from circuitcli.render.document import document, to_json
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import Drawing
from circuitcli.render.page import page
from circuitcli.render.picture import write_picture
from circuitcli.render.text import visible
from circuitcli.runs import atomic
from circuitcli.settings.render import Form, RenderSettings

BY_SUFFIX: dict[str, Form] = {
    ".dot": "dot",
    ".svg": "svg",
    ".png": "png",
    ".pdf": "pdf",
    ".json": "json",
    ".html": "html",
    ".graphml": "graphml",
    ".gexf": "gexf",
    ".csv": "csv",
    ".mmd": "mermaid",
}
SUFFIXES = tuple(BY_SUFFIX)
PICTURES = ("svg", "png", "pdf")
STDOUT = "-"


@runtime_checkable
class Writer(Protocol):
    """Where text can be written: stdout, or a text in memory."""

    def write(self, text: str, /) -> int:
        """Write the text and return its length."""


def checked(outputs: Iterable[str], form: Form | None = None) -> list[str]:
    """The outputs, each once. Raises SettingsError for a suffix that nothing draws, unless a format is asked for, and
    for a format that stdout does not take."""
    names = list(dict.fromkeys(outputs))
    for name in names:
        if name == STDOUT and form in (*PICTURES, "csv", "neuronpedia"):
            what = "is not text" if form in PICTURES else "is several files"
            raise SettingsError(f"--as {form} {what}, and cannot go to stdout", hint="name a file: -o FILE")
        if form is None and name != STDOUT and Path(name).suffix.lower() not in SUFFIXES:
            endings = " ".join(SUFFIXES)
            raise SettingsError(f"cannot draw '{name}'", hint=f"files end in {endings}; - is DOT on stdout")
    return names


def form_of(name: str, settings: RenderSettings) -> Form:
    """The format of an output: the one that is asked for, else that of its suffix, and DOT on stdout."""
    return settings.form or ("dot" if name == STDOUT else BY_SUFFIX[Path(name).suffix.lower()])


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
    names = checked(outputs, settings.form)
    forms = {name: form_of(name, settings) for name in names}
    for name in sorted(names, key=lambda name: forms[name] in PICTURES):
        shown = pictured if pictured is not None and forms[name] in (*PICTURES, "dot") else drawing
        if name == STDOUT:
            stdout.write(text(shown, forms[name], settings))
        else:
            _write_file(shown, Path(name), forms[name], settings)
    return [Path(name) for name in names if name != STDOUT]


def text(drawing: Drawing, form: Form, settings: RenderSettings, *, path: Path | None = None) -> str:
    """The drawing in a format that is one text. path: the file that it is for."""
    if form == "html":
        return page(drawing, path=path)
    if form == "json":
        return to_json(document(drawing, path=path), indent=1) + "\n"
    shared = sharing.text(drawing, form)
    return dot_source(drawing, settings) if shared is None else shared


def _write_file(drawing: Drawing, path: Path, form: Form, settings: RenderSettings) -> None:
    if form in PICTURES:
        title = visible(drawing.graph.head.name)
        source = dot_source(drawing, settings)
        try:
            write_picture(source, path, form=form, dpi=settings.dpi, paper=settings.tile, title=title)
        except ToolError:
            # Whoever has no dot here can still draw the source elsewhere.
            _write_text(path.with_suffix(".dot"), source)
            raise
    elif form in ("csv", "neuronpedia"):
        for place, content in sharing.files(drawing, path, form=form, settings=settings):
            _write_text(place, content)
    else:
        _write_text(path, text(drawing, form, settings, path=path))


def _write_text(path: Path, content: str) -> None:
    with atomic(path) as stream:
        stream.write(content)
