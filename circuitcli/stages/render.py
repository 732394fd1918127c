"""``circuit render``: a graph as pictures, a page or a document. Needs no torch and no model."""

import re
from collections.abc import Iterator
from pathlib import Path

from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, content_digest, from_records
from circuitcli.records import FigureRecord, Record, ScoreRecord, Stream, VerdictRecord
from circuitcli.render.details import read_details
from circuitcli.render.drawing import draw
from circuitcli.render.write import Writer, checked, write
from circuitcli.stages.request import Request

DEFAULT_FORMS = (".html", ".svg")


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the graph that was named, or else the last one, and return a record for each file.

    Files go where the settings say, relative to the working directory, and by default to RUN/figures. With ``-`` among
    the outputs the DOT text goes to ``stdout`` and has no record. Raises InputError if there is no such graph.
    """
    settings = request.settings.render
    outputs = checked(settings.output)
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
    paths = write(drawing, outputs or _defaults(graph, directory), settings, stdout=stdout)
    return [FigureRecord(path=recorded(path, directory)) for path in paths]


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


def _defaults(graph: CircuitGraph, directory: Path | None) -> list[str]:
    name = re.sub(r"[^\w.-]+", "-", graph.head.name).strip("-.") or "circuit"
    folder = Path() if directory is None else directory / "figures"
    return [str(folder / f"{name}{suffix}") for suffix in DEFAULT_FORMS]


def recorded(path: Path, directory: Path | None) -> str:
    """Relative to the run directory if inside it, else as given."""
    if directory is not None and path.resolve().is_relative_to(directory.resolve()):
        return path.resolve().relative_to(directory.resolve()).as_posix()
    return path.as_posix()
