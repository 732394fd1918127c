"""GEXF 1.2, as Gephi and NetworkX read it. Attributes have types; the head of the graph, for which there is no place,
is its description."""

from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.rows import Row, Typed, head_text, rebuilt
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.graphs.exchange.xml import TYPES, attribute, root, text_of, value_of

SPACE = "http://www.gexf.net/1.2draft"
_OUTSIDE = {"node": ("id",), "edge": ("source", "target", "weight")}


def text(shared: Shared) -> str:
    """The document of a graph."""
    return "".join(_lines(Typed.of(shared)))


def _lines(typed: Typed) -> Iterator[str]:
    yield f'<?xml version="1.0" encoding="UTF-8"?>\n<gexf xmlns="{SPACE}" version="1.2">\n'
    yield f"<meta><creator>circuit</creator><description>{text_of(head_text(typed.shared))}</description></meta>\n"
    yield '<graph defaultedgetype="directed" mode="static">\n'
    for owner, types in (("node", typed.nodes), ("edge", typed.edges)):
        yield f'<attributes class="{owner}" mode="static">\n'
        for name, kind in types.items():
            if name not in _OUTSIDE[owner]:
                yield f'<attribute id="{name}" title="{name}" type="{TYPES[kind]}"/>\n'
        yield "</attributes>\n"
    yield "<nodes>\n"
    for row in typed.node_rows():
        label = f"{row['id']} {row.get('label', '')}".rstrip()
        yield f"<node id={attribute(row['id'])} label={attribute(label)}>\n"
        yield from _values_of("node", row)
        yield "</node>\n"
    yield "</nodes>\n<edges>\n"
    for number, row in enumerate(typed.edge_rows()):
        ends = " ".join(f"{end}={attribute(row[end])}" for end in _OUTSIDE["edge"])
        yield f'<edge id="{number}" {ends}>\n'
        yield from _values_of("edge", row)
        yield "</edge>\n"
    yield "</edges>\n</graph>\n</gexf>\n"


def _values_of(owner: str, row: Mapping[str, Any]) -> Iterator[str]:
    yield "<attvalues>\n"
    for name, value in row.items():
        if name not in _OUTSIDE[owner]:
            yield f'<attvalue for="{name}" value={attribute(value)}/>\n'
    yield "</attvalues>\n"


def read(content: bytes, *, name: str) -> Shared:
    """The graph of a document that was written here. Raises InputError for another's, which tells no head."""
    document = root(content, name=name)
    head = document.findtext("meta/description") or ""
    if document.findtext("meta/creator") != "circuit" or not head.startswith("{"):
        raise InputError(
            f"{name} is GEXF, but not of a circuit that was written here",
            hint="`circuit render --as gexf` writes files that can be read again",
        )
    keys = {str(one.get("id")): (str(one.get("title")), str(one.get("type"))) for one in document.iter("attribute")}
    nodes = [{"id": node.get("id"), **_values(node, keys, name)} for node in document.iter("node")]
    edges = [
        {
            "source": edge.get("source"),
            "target": edge.get("target"),
            "weight": value_of(edge.get("weight", "1"), "double", name=name),
            **_values(edge, keys, name),
        }
        for edge in document.iter("edge")
    ]
    return rebuilt(head, nodes, edges, name=name)


def _values(element: ElementTree.Element, keys: Mapping[str, tuple[str, str]], name: str) -> Row:
    found: Row = {}
    for one in element.findall("attvalues/attvalue"):
        column, kind = keys.get(str(one.get("for")), ("", ""))
        found[column] = value_of(one.get("value", ""), kind, name=f"{name}: {column}")
    return found
