"""GraphML, as NetworkX, Gephi, yEd, Cytoscape and igraph read it. Attributes have types; the head of the graph, which
none of them knows, is one text."""

from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.rows import Row, Typed, head_text, rebuilt
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.graphs.exchange.xml import TYPES, attribute, root, text_of, value_of

SPACE = "http://graphml.graphdrawing.org/xmlns"
OWN = "circuit"
# What programs show of the graph itself.
_OF_GRAPH = ("name", "model", "prompt", "method", "metric", "unit", "baseline", "positions")


def text(shared: Shared) -> str:
    """The document of a graph."""
    return "".join(_lines(Typed.of(shared)))


def _lines(typed: Typed) -> Iterator[str]:
    yield f'<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="{SPACE}">\n'
    head = typed.shared.graph.head
    about = {name: str(getattr(head, name)) for name in _OF_GRAPH}
    columns = {
        "graph": {**dict.fromkeys(about, "string"), OWN: "string"},
        "node": {name: kind for name, kind in typed.nodes.items() if name != "id"},
        "edge": {name: kind for name, kind in typed.edges.items() if name not in ("source", "target")},
    }
    for owner, types in columns.items():
        for name, kind in types.items():
            yield f'<key id="{owner}.{name}" for="{owner}" attr.name="{name}" attr.type="{TYPES[kind]}"/>\n'
    yield '<graph edgedefault="directed">\n'
    yield from _data("graph", {**about, OWN: head_text(typed.shared)})
    for row in typed.node_rows():
        yield f"<node id={attribute(row.pop('id'))}>\n"
        yield from _data("node", row)
        yield "</node>\n"
    for row in typed.edge_rows():
        yield f"<edge source={attribute(row.pop('source'))} target={attribute(row.pop('target'))}>\n"
        yield from _data("edge", row)
        yield "</edge>\n"
    yield "</graph>\n</graphml>\n"


def _data(owner: str, row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield f'<data key="{owner}.{name}">{text_of(value)}</data>\n'


def read(content: bytes, *, name: str) -> Shared:
    """The graph of a document that was written here. Raises InputError for another's, which tells no head."""
    document = root(content, name=name)
    keys = {
        str(key.get("id")): (str(key.get("attr.name")), str(key.get("attr.type", "string")))
        for key in document.iter("key")
    }
    graph = document.find("graph")
    head = {} if graph is None else _values(graph, keys, name)
    if graph is None or not isinstance(head.get(OWN), str):
        raise InputError(
            f"{name} is GraphML, but not of a circuit that was written here",
            hint="`circuit render --as graphml` writes files that can be read again",
        )
    nodes = [{"id": node.get("id"), **_values(node, keys, name)} for node in graph.iter("node")]
    ends = ("source", "target")
    edges = [{**{end: one.get(end) for end in ends}, **_values(one, keys, name)} for one in graph.iter("edge")]
    return rebuilt(head[OWN], nodes, edges, name=name)


def _values(element: ElementTree.Element, keys: Mapping[str, tuple[str, str]], name: str) -> Row:
    found: Row = {}
    for data in element.findall("data"):
        column, kind = keys.get(str(data.get("key")), ("", ""))
        found[column] = value_of(data.text or "", kind, name=f"{name}: {column}")
    return found
