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
    """Only these nodes, the edges between them, and the traces of their features."""
    kept = set(ids)
    nodes = tuple(node for node in graph.nodes if node.id in kept)
    # Most graphs are as they were, and a place is slow to parse.
    features = {place.feature for node in nodes if (place := node.place) is not None} if graph.traces else ()
    return replace(
        graph,
        nodes=nodes,
        edges=tuple(edge for edge in graph.edges if edge.source in kept and edge.target in kept),
        traces=tuple(trace for trace in graph.traces if trace.feature in features),
    )
