"""``circuit render``: a graph as pictures, a page or a document. Needs no torch and no model."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, content_digest, from_records
from circuitcli.records import FigureRecord, Record, ScoreRecord, Stream, VerdictRecord
from circuitcli.render.details import read_details
from circuitcli.render.drawing import draw
from circuitcli.render.links import pages_of_features
from circuitcli.render.opened import opened
from circuitcli.render.write import BY_SUFFIX, Writer, checked, form_of, write
from circuitcli.settings.render import Form, RenderSettings
from circuitcli.stages.request import Request

DEFAULT_FORMS = (".html", ".svg")
PAGED = "pdf"


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the graph that was named, or else the last one, and return a record for each file.

    Files go where the settings say, relative to the working directory, and by default to RUN/figures. With ``-`` among
    the outputs the DOT text goes to ``stdout`` and has no record. Raises InputError if there is no such graph.
    """
    settings = request.settings.render
    outputs = _checked(settings)
    graph = chosen_graph(request.records, settings.graph)
    directory = request.run.path if request.run.path.is_dir() else None
    drawing = draw(
        graph,
        details=read_details(graph, request.records, directory, labels=settings.labels),
        scores=scores_of(graph, request.records),
        verdict=verdict_of(graph, request.records),
        max_edges=settings.max_edges,
        max_nodes=settings.max_nodes,
    )
    drawing, pictured = opened(replace(drawing, feature_pages=pages_of_features(directory)), settings)
    chosen = outputs or _defaults(graph, directory, settings.form)
    paths = write(drawing, chosen, settings, stdout=stdout, pictured=pictured)
    return [FigureRecord(path=recorded(path, directory)) for path in paths]


def _checked(settings: RenderSettings) -> list[str]:
    """The outputs that the settings name. Raises SettingsError for a suffix that nothing draws, and for paper without a
    file that has pages."""
    outputs = checked(settings.output, settings.form)
    if settings.tile is not None and not any(form_of(name, settings) == PAGED for name in outputs):
        raise SettingsError(f"--tile {settings.tile} lays out a PDF, and none is written", hint="add -o circuit.pdf")
    return outputs


def chosen_graph(records: Stream, name: str | None) -> CircuitGraph:
    """The last graph of that name, or the last of all. Raises InputError if there is none."""
    graphs = from_records(records)
    if not graphs:
        raise InputError(
            "render read no 'graph' record",
            hint="run `circuit graph-grad` or `circuit graph-naive` before it, or name a graph FILE",
        )
    named = [graph for graph in graphs if name is None or graph.head.name == name]
    if not named:
        names = ", ".join(dict.fromkeys(graph.head.name for graph in graphs))
        raise InputError(f"there is no graph '{name}'", hint=f"--graph takes one of: {names}")
    return named[-1]


def scores_of(graph: CircuitGraph, records: Stream) -> list[ScoreRecord]:
    """The scores of this graph: those that name it, and those without a name that follow it before another graph.

    A score of another graph that had the same name is left out.
    """
    return [record for record in _about(graph, records) if isinstance(record, ScoreRecord)]


def verdict_of(graph: CircuitGraph, records: Stream) -> VerdictRecord | None:
    """What the last test of this graph came to, as `scores_of` finds it."""
    found = [record for record in _about(graph, records) if isinstance(record, VerdictRecord)]
    return found[-1] if found else None


def _about(graph: CircuitGraph, records: Stream) -> Iterator[ScoreRecord | VerdictRecord]:
    current: str | None = None
    digest = content_digest(graph)
    for record in records:
        if record.kind == "graph":
            current = str(getattr(record, "name", ""))
        elif isinstance(record, ScoreRecord | VerdictRecord):
            is_stale = record.graph_digest not in (digest, None)
            about = current if record.graph is None else record.graph
            if about in (graph.head.name, None) and not is_stale:
                yield record


def _defaults(graph: CircuitGraph, directory: Path | None, form: Form | None) -> list[str]:
    name = file_name(graph.head.name)
    # A graph for another program's page lies among its own files.
    folder = Path() if directory is None else directory / ("neuronpedia" if form == "neuronpedia" else "figures")
    known = {written: suffix for suffix, written in BY_SUFFIX.items()}
    suffixes = DEFAULT_FORMS if form is None else (known.get(form, f".{form}.json"),)
    return [str(folder / f"{name}{suffix}") for suffix in suffixes]


def file_name(name: str) -> str:
    """The name of a graph in characters that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "circuit"


def recorded(path: Path, directory: Path | None) -> str:
    """Relative to the run directory if inside it, else as given; whole if the run has a file of that name too."""
    if directory is not None and path.resolve().is_relative_to(directory.resolve()):
        return path.resolve().relative_to(directory.resolve()).as_posix()
    return (path.resolve() if directory is not None and (directory / path).exists() else path).as_posix()
