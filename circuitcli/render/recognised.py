"""What a file or a directory is that a command wrote for people, told by what is in it and never by its name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from circuitcli import records
from circuitcli.errors import CircuitError, InputError
from circuitcli.graphs import from_records
from circuitcli.reading import parse_json, read_bytes, read_text
from circuitcli.records import GraphRecord
from circuitcli.render.feature_pages import INDEX, data_path
from circuitcli.render.modules import carried

MOST_BYTES = 2**30
HINT = "write it again"
_BEGINNING = 2**13
_PICTURES = ((b"\x89PNG\r\n", "a picture (PNG)"), (b"%PDF-", "a picture (PDF)"))
_TEXTS = (
    (r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg\b", "a picture (SVG)"),
    (r"(strict\s+)?digraph\b", "a picture's source (DOT)"),
    (r"flowchart (BT|TB|LR)\b", "a chart (Mermaid)"),
    (r"source,target,", "a table of a graph's edges (CSV)"),
    (r"id,", "a table of a graph's nodes (CSV)"),
)
_OF_DATA = re.compile(r"circuitData\([^,]*, (.*)\);\s*", re.DOTALL)
# Of JSON objects the keys by which they are known, and what they are.
_OBJECTS = (
    ({"pinned", "groups", "labels"}, "what a reader did to the page of a circuit"),
    ({"graphs"}, "the list of graphs for a graph viewer"),
    ({"id", "label", "density"}, "descriptions of features"),
    ({"kind"}, "records"),
)


@dataclass(frozen=True)
class Recognised:
    """What it is, the heads of graphs in it with the numbers of their parts, and other facts."""

    what: str
    graphs: Sequence[GraphRecord] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tells(self) -> bool:
        """Whether more is known of it than what it is."""
        return bool(self.graphs or self.facts)


def recognised(path: Path) -> Recognised | None:
    """What the file or directory is; None for what is none of these. Raises InputError for one that is damaged."""
    if path.is_dir():
        return _pages(path)
    beginning = _beginning(path)
    if found := next((what for magic, what in _PICTURES if beginning.startswith(magic)), None):
        return Recognised(found)
    text = beginning.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").lstrip()
    if text[:9].lower() == "<!doctype" and "<html" in text:
        return _page(path)
    if text.startswith("{"):
        return _object(path)
    return next((Recognised(what) for start, what in _TEXTS if re.match(start, text, re.DOTALL)), None)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_BEGINNING)
    except OSError:
        return b""


def _pages(folder: Path) -> Recognised | None:
    """The directory that `circuit interp --html` writes."""
    if not ((folder / INDEX).is_file() and data_path(folder, "index").is_file()):
        return None
    path = data_path(folder, "index")
    match = _OF_DATA.fullmatch(read_text(path, limit_bytes=MOST_BYTES, hint=HINT))
    index = parse_json(match[1], name=str(path), hint=HINT) if match else None
    if not isinstance(index, dict) or not isinstance(index.get("coders"), list):
        raise InputError(f"{path} is not the index of pages of features", hint=HINT)
    coders = {str(one.get("hook")): f"{one.get('n_live')} of {one.get('d_sae')}" for one in _dicts(index["coders"])}
    told = {"run": index.get("run"), "model": index.get("model"), "live features": coders}
    return Recognised("pages of features", facts=told)


def _page(path: Path) -> Recognised | None:
    """A page that was written here, by what it carries."""
    try:
        content = carried(read_text(path, limit_bytes=MOST_BYTES, hint=HINT))
    except (ValueError, RecursionError):
        return None
    if isinstance(packed := content.get("packed"), dict):
        return _circuit("the page of a circuit", packed, path)
    if isinstance(frames := content.get("frames"), list):
        return Recognised("the page of circuits through training", facts={"checkpoints": len(frames)})
    if isinstance(features := content.get("features"), list):
        what = "the page of a text and its features" if "tokens" in content else "a page of features"
        ids = [str(one.get("id")) for one in _dicts(features)]
        return Recognised(what, facts={"run": content.get("run"), "features": _first(ids)})
    return _pages(path.parent)


def _first(names: Sequence[str]) -> str:
    return " ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _circuit(what: str, content: Mapping[str, Any], path: Path) -> Recognised:
    """Of the document of a drawing, packed or not."""
    counts = {f"n_{name}": _length(content.get(name)) for name in ("nodes", "edges")}
    # Of a packed one labels are by feature, else by node.
    try:
        details = content.get("details") or {
            node["feature"]: node["details"] for node in _dicts(content["nodes"]) if node["details"]
        }
        counts["n_labels"] = sum(bool(one["label"]) for one in details.values())
        head = GraphRecord.model_validate({**content["graph"], "kind": "graph", **counts})
    except (AttributeError, KeyError, TypeError, ValidationError):
        raise InputError(f"{path} is {what}, but its head is damaged", hint=HINT) from None
    return Recognised(what, (head,))


def _dicts(values: Any) -> Iterator[Mapping[str, Any]]:
    return (one for one in values if isinstance(one, dict)) if isinstance(values, list) else iter(())


def _length(table: Any) -> int:
    length = table.get("length") if isinstance(table, dict) else len(table) if isinstance(table, list) else 0
    return length if isinstance(length, int) else 0


def _object(path: Path) -> Recognised | None:
    """JSON: a whole document, or a file of lines, which are known by the first."""
    content = read_bytes(path, limit_bytes=MOST_BYTES, hint=HINT)
    whole = _parsed(content, path)
    keys = whole.keys() if whole is not None else (_parsed(content.partition(b"\n")[0], path) or {}).keys()
    if whole is not None and {"graph", "nodes", "edges", "scales"} <= keys:
        return _circuit("a circuit with all that a picture shows (JSON)", whole, path)
    found = next((Recognised(what) for known, what in _OBJECTS if known <= keys), None)
    return _records(path) if found is not None and found.what == "records" else found


def _parsed(content: bytes, path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(content, name=str(path))
    except CircuitError:
        return None
    return found if isinstance(found, dict) else None


def _records(path: Path) -> Recognised:
    found = records.read_file(path, hint=HINT)
    heads = [
        GraphRecord.model_validate(
            {**graph.head.model_dump(), "n_nodes": len(graph.nodes), "n_edges": len(graph.edges)}
        )
        for graph in from_records(found)
    ]
    kinds = dict.fromkeys(record.kind for record in found)
    return Recognised("records", heads, {} if heads else {"kinds": " ".join(kinds)})
