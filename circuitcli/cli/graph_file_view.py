"""``circuit inspect FILE``: which program's graph a file holds."""

import shlex
from pathlib import Path

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
    if console.prints_records:
        head = GraphRecord.model_validate({**graph.head.model_dump(), **counts})
        return console.records([to_line(head)])
    told = {"a graph of": graph.head.origin or "circuit", "model": graph.head.model, "prompt": graph.head.explained}
    told |= {name.removeprefix("n_"): f"{count:,}" for name, count in counts.items()}
    console.view_table(Rows(("", ""), [(name, printable(value)[:200]) for name, value in told.items()]))
    console.say(f"next: `circuit render {shlex.quote(path)} -o circuit.html`")
