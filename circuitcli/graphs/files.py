"""Graphs in files of records."""

from dataclasses import replace
from pathlib import Path

from circuitcli import records
from circuitcli.errors import InputError, first_line
from circuitcli.graphs.conversion import from_records, to_records
from circuitcli.graphs.exchange import formats
from circuitcli.graphs.graph import CircuitGraph
from circuitcli.reading import json_lines
from circuitcli.records import GraphRecord

HINT = "name a file of records, such as RUN/graphs/circuit.jsonl"


def save(graph: CircuitGraph, path: Path) -> None:
    """Write a graph; the file appears whole or not at all. Raises InputError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            records.write(to_records(graph), stream)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror or first_line(error)
        raise InputError(f"cannot write {path}: {reason}", hint="name a file in a folder that exists") from None


def load(path: Path, *, name: str | None = None) -> CircuitGraph:
    """The last graph of a file, or the one of this name. Raises InputError if there is none."""
    if (shared := formats.read(path)) is not None and name in (None, shared.graph.head.name):
        return shared.graph
    found = from_records(records.read_file(path, hint=HINT))
    if not found:
        raise InputError(f"{path} holds no graph", hint=HINT)
    chosen = [graph for graph in found if name in (None, graph.head.name)]
    if not chosen:
        there = " ".join(dict.fromkeys(graph.head.name for graph in found))
        raise InputError(f"{path} holds no graph named '{name}'", hint=f"it holds {there}")
    return replace(chosen[-1], head=_with_prompts(chosen[-1].head, path))


def _with_prompts(head: GraphRecord, path: Path) -> GraphRecord:
    """The head with the prompts that its run keeps for it: it can then be tested, and saved, anywhere."""
    # Heads in a run name their own file, and that of their prompts, from the run.
    if head.path is None or head.prompts is None or getattr(head, "examples", None) is not None:
        return head
    kept = path.parent.parent / head.prompts
    if not kept.is_file():
        return head
    lines = json_lines(kept, hint="make the graph again")
    return head.model_copy(update={"examples": [content for _, content in lines]})
