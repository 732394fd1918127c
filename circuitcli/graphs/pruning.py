"""Graphs in order, and parts of graphs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from circuitcli.graphs.graph import CircuitGraph, Node
from circuitcli.hookpoints import NodeOrder


def node_order(node: Node, span_names: Sequence[str] = ()) -> tuple[bool, NodeOrder]:
    """Sort key: model order, the output last. Raises SettingsError for an id that names nothing."""
    place = node.place
    return (True, ((0, 0), (0, ""), 0)) if place is None else (False, place.order_among(span_names))


def sorted_graph(graph: CircuitGraph) -> CircuitGraph:
    """The same graph with nodes in model order and edges by target, then falling strength."""
    names = graph.head.span_names or ()
    nodes = tuple(sorted(graph.nodes, key=lambda node: node_order(node, names)))
    rank = {node.id: number for number, node in enumerate(nodes)}
    edges = sorted(graph.edges, key=lambda edge: (rank[edge.target], -abs(edge.weight), rank[edge.source]))
    return replace(graph, nodes=nodes, edges=tuple(edges))


def restricted(graph: CircuitGraph, ids: Iterable[str]) -> CircuitGraph:
    """Only these nodes, and the edges between them."""
    kept = set(ids)
    return replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.id in kept),
        edges=tuple(edge for edge in graph.edges if edge.source in kept and edge.target in kept),
    )
