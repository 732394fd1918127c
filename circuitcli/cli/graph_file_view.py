"""``circuit inspect FILE``: which program's graph a file holds."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitcli.cli.console import Rows, console
from circuitcli.errors import InputError
from circuitcli.graphs.exchange import formats
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.printable import printable
from circuitcli.records import GraphRecord, to_line


def graph_in(text: str) -> Shared | None:
    """The graph of another program that a file holds; None for what is no file, or may be an SAE.

    Raises InputError for a graph that is damaged.
    """
    path = Path(text)
    kind = formats.format_of(path)
    try:
        return None if kind is None else formats.read(path)
    except InputError:
        # Most files of tensors, and some of JSON, hold SAEs.
        if kind in ("torch", "json"):
            return None
        raise


def show(found: Shared, path: str) -> None:
    """Tell what the graph is: as a record, or as a table."""
    graph = found.graph
    counts = {"n_nodes": len(graph.nodes), "n_edges": len(graph.edges), "n_labels": len(found.features)}
    head = GraphRecord.model_validate({**graph.head.model_dump(), **counts})
    if console.prints_records:
        return console.records([to_line(head)])
    show_facts({"a graph of": head.origin or "circuit", **told(head)})
    console.say(f"next: `circuit render {shlex.quote(path)} -o circuit.html`")


def told(head: GraphRecord) -> dict[str, Any]:
    """What is told of a graph whose head counts its parts."""
    counts = {name.removeprefix("n_"): getattr(head, name, None) for name in ("n_nodes", "n_edges", "n_labels")}
    known = {name: f"{count:,}" for name, count in counts.items() if count is not None}
    return {"model": head.model, "prompt": head.explained, **known}


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print names and what they are; of a fact about several each in a line of its own."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        parts = {f"{name} at {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        rows += [(printable(key), printable(str(one))[:200]) for key, one in parts.items() if one is not None]
    console.view_table(Rows(("", ""), rows))
