"""Graphs for other libraries: tables for pandas, a directed graph for networkx."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from circuitcli.errors import ToolError
from circuitcli.graphs.graph import CircuitGraph, Edge, Node

if TYPE_CHECKING:
    import networkx
    import pandas

# Columns and their pandas types, which keep numbers numbers where some are missing.
NODES = {
    "id": "string",
    "kind": "string",
    "hook": "string",
    "layer": "Int64",
    "site": "string",
    "feature": "Int64",
    "is_error": "boolean",
    "position": "Int64",
    "token": "string",
    "activation": "float64",
    "effect": "float64",
    "standard_error": "float64",
    "active": "float64",
    "unit": "string",
    "influence": "float64",
    "probability": "float64",
}
EDGES = {
    "source": "string",
    "target": "string",
    "weight": "float64",
    "standard_error": "float64",
    "active": "float64",
    "unit": "string",
}


def to_pandas(graph: CircuitGraph) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
    """Nodes and edges as tables; see `CircuitGraph.to_pandas`. Positions are text where some are names of spans."""
    nodes = [node_facts(node, graph) for node in graph.nodes]
    names_spans = any(isinstance(facts["position"], str) for facts in nodes)
    types = {**NODES, "position": "string"} if names_spans else NODES
    return _table(nodes, types), _table([edge_facts(edge) for edge in graph.edges], EDGES)


def to_networkx(graph: CircuitGraph) -> "networkx.DiGraph":
    """The graph for networkx; see `CircuitGraph.to_networkx`."""
    networkx = _library("networkx")
    made = networkx.DiGraph(**graph.head.model_dump(mode="json", exclude={"kind"}, exclude_none=True))
    made.add_nodes_from((node.id, _known(node_facts(node, graph), without=("id",))) for node in graph.nodes)
    made.add_edges_from(
        (edge.source, edge.target, _known(edge_facts(edge), without=("source", "target"))) for edge in graph.edges
    )
    return made


def node_facts(node: Node, graph: CircuitGraph) -> dict[str, Any]:
    """What is known of a node, by column."""
    place = node.place
    position = None if place is None else place.position
    return {
        "id": node.id,
        "kind": node.kind,
        "hook": None if place is None else str(place.hook),
        "layer": None if place is None or place.hook.site == "embed" else place.hook.layer,
        "site": None if place is None else place.hook.site,
        "feature": None if place is None else place.index,
        "is_error": place is not None and place.is_error,
        "position": position,
        "token": graph.head.token_of(node.id) or " | ".join(graph.head.tokens_at(position)) or None,
        "activation": node.activation,
        "effect": node.effect,
        "standard_error": node.standard_error,
        "active": node.active,
        "unit": node.unit,
        "influence": node.influence,
        "probability": node.probability,
    }


def edge_facts(edge: Edge) -> dict[str, Any]:
    """What is known of an edge, by column."""
    return {name: getattr(edge, name) for name in EDGES}


def _table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> "pandas.DataFrame":
    pandas = _library("pandas")
    return pandas.DataFrame(
        {name: pandas.array([_cell(row[name], kind) for row in rows], dtype=kind) for name, kind in types.items()}
    )


def _cell(value: Any, kind: str) -> Any:
    if value is None:
        return float("nan") if kind == "float64" else None
    return str(value) if kind == "string" else value


def _known(facts: Mapping[str, Any], *, without: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None and name not in without}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ToolError(
            f"this needs the package '{name}', which is not installed", hint=f"pip install {name}"
        ) from None
