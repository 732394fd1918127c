"""``circuit inspect PATH``: what a file or directory is that a command wrote for people."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from circuitcli.cli.console import console
from circuitcli.cli.graph_file_view import show_facts, told
from circuitcli.errors import InputError
from circuitcli.records import FigureRecord, Record, to_line
from circuitcli.render.recognised import Recognised, recognised


def found(text: str) -> Recognised | None:
    """What it is; None for what may be an SAE. Raises InputError for what holds nothing that could be told of."""
    other = recognised(Path(text))
    if other is not None and not other.tells:
        raise InputError(
            f"{text} is {other.what}, and no SAE",
            hint="`circuit inspect` takes SAEs, graphs and pages; without an argument it lists the run",
        )
    return other


def show(other: Recognised, path: str) -> None:
    """Tell what it is and what is in it: as records, or as tables."""
    if console.prints_records:
        fields = {name.replace(" ", "_"): value for name, value in other.facts.items()}
        told_of: Sequence[Record] = other.graphs or [FigureRecord(path=path, what=other.what, **fields)]
        return console.records(map(to_line, told_of))
    for head in other.graphs:
        show_facts({"this is": other.what, "graph": head.name, **told(head)})
    if other.facts:
        show_facts({"this is": other.what, **other.facts})
    if other.what == "records" and other.graphs:
        console.say(f"next: `circuit render {shlex.quote(path)} -o circuit.html`")
