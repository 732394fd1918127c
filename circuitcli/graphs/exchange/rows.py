"""Nodes and edges as rows of typed columns, as tables and XML formats take them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.shared import AGAIN, Shared, bare, checked
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.graphs.tables import EDGES, NODES, edge_facts, node_facts
from circuitcli.reading import parse_object, whole_characters
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord

# In the words of the tables' columns.
NODE_COLUMNS = {**NODES, "label": "string"}
EDGE_COLUMNS = {**EDGES, "heads": "string", "exact": "float64"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Typed:
    """A graph as rows. ``nodes`` and ``edges`` are the columns with their types."""

    nodes: Mapping[str, str]
    edges: Mapping[str, str]
    shared: Shared

    @classmethod
    def of(cls, shared: Shared) -> "Typed":
        """The rows of a graph: positions are text where some are names of spans."""
        names_spans = any(isinstance(place.position, str) for node in shared.graph.nodes if (place := node.place))
        types = {**NODE_COLUMNS, "position": "string"} if names_spans else NODE_COLUMNS
        return cls(types, EDGE_COLUMNS, shared)

    def node_rows(self) -> Iterator[Row]:
        """What is known of each node, by column."""
        for node in self.shared.graph.nodes:
            facts, place = node_facts(node, self.shared.graph), node.place
            label = "" if place is None else self.shared.label(place.feature)
            yield _known({**facts, "label": label or None})

    def edge_rows(self) -> Iterator[Row]:
        """What is known of each edge, by column."""
        for edge in self.shared.graph.edges:
            heads = None if edge.heads is None else json.dumps(dict(edge.heads))
            yield _known({**edge_facts(edge), "heads": heads, "exact": edge.exact})


def _known(facts: Mapping[str, Any]) -> Row:
    return {
        name: whole_characters(value) if isinstance(value, str) else value
        for name, value in facts.items()
        if value is not None
    }


def head_text(shared: Shared) -> str:
    """The head, labels and groups in ASCII, which every format carries unchanged."""
    content = {
        "head": bare(shared.graph.head),
        "labels": {name: shared.label(name) for name in shared.features if shared.label(name)},
        "groups": [[label, *names] for label, names in shared.groups],
        "pinned": list(shared.pinned),
    }
    return json.dumps(content, allow_nan=False)


def rebuilt(head: str, nodes: list[Row], edges: list[Row], *, name: str) -> Shared:
    """The graph of the text that `head_text` made and of rows. Raises InputError for what no graph of ours has."""
    told = parse_object(head, name=f"the head in {name}", hint="write it again: circuit render --as")
    labels = told.get("labels")
    graph = CircuitGraph(
        checked(GraphRecord, {**_object(told, "head", name), "kind": "graph"}, place=name),
        tuple(_node(row, name) for row in nodes),
        tuple(_edge(row, name) for row in edges),
    )
    features = {str(key): {"label": str(text)} for key, text in (labels if isinstance(labels, dict) else {}).items()}
    groups = [one for one in _texts(told, "groups") if isinstance(one, list) and one]
    return Shared(
        graph,
        features,
        tuple((str(one[0]), tuple(map(str, one[1:]))) for one in groups),
        tuple(map(str, _texts(told, "pinned"))),
    )


def _object(told: Mapping[str, Any], field: str, name: str) -> dict[str, Any]:
    found = told.get(field)
    if not isinstance(found, dict):
        raise InputError(f"{name} tells no head of the graph", hint="write it again: circuit render --as")
    return found


def _texts(told: Mapping[str, Any], field: str) -> list[Any]:
    found = told.get(field)
    return found if isinstance(found, list) else []


def _node(row: Row, name: str) -> Node:
    record = checked(NodeRecord, _of(Node, row), place=f"{name}: node {str(row.get('id'))[:60]}")
    return Node(**_of(Node, vars(record)))


def _edge(row: Row, name: str) -> Edge:
    content = _of(Edge, row)
    if isinstance(content.get("heads"), str):
        content["heads"] = parse_object(content["heads"], name=f"{name}: the heads of an edge", hint=AGAIN)
    ends = f"{str(row.get('source'))[:30]} -> {str(row.get('target'))[:30]}"
    record = checked(EdgeRecord, content, place=f"{name}: edge {ends}")
    return Edge(**_of(Edge, vars(record)))


def _of(kind: type[Node] | type[Edge], row: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: row[field.name] for field in fields(kind) if field.name in row}
