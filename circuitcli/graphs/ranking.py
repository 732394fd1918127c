"""Nodes and edges of a graph from the first to the last, by size or by influence; the page ranks alike."""

from collections.abc import Iterable
from math import inf
from typing import Literal

from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.graphs.pruning import sorted_graph

By = Literal["effect", "influence"]


def first_nodes(graph: CircuitGraph, n: int, *, by: By) -> tuple[Node, ...]:
    """The first nodes of the ranking; outputs and, by effect, nodes without one come before all others."""
    if by == "influence":
        sizes, _ = influences(graph)
        ranked = sorted(graph.nodes, key=lambda node: -(sizes[node.id] if node.place is not None else inf))
    else:
        ranked = sorted(graph.nodes, key=lambda node: -_effect(node))
    return tuple(ranked[:n])


def first_edges(graph: CircuitGraph, n: int, *, by: By) -> tuple[Edge, ...]:
    """The first edges of the ranking; by effect each is compared with the largest of its unit."""
    if by == "influence":
        _, shares = influences(graph)
        ranked = sorted(graph.edges, key=lambda edge: -shares[edge.source, edge.target])
    else:
        largest = _largest(graph.edges)
        ranked = sorted(graph.edges, key=lambda edge: -(abs(edge.weight) / (largest[edge.unit] or 1.0)))
    return tuple(ranked[:n])


def _effect(node: Node) -> float:
    return inf if node.effect is None or node.place is None else abs(node.effect)


def _largest(edges: Iterable[Edge]) -> dict[str, float]:
    found: dict[str, float] = {}
    for edge in edges:
        found[edge.unit] = max(found.get(edge.unit, 0.0), abs(edge.weight))
    return found


def influences(graph: CircuitGraph) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """How much each node and each edge matters to the output by way of all paths, as in `graphs.influence`: what goes
    into a node is shared among its edges by |weight|, from the last node to the first. In the order and the rounding of
    the page's ranking.js, so that both rank alike where two are equal."""
    into: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        into.setdefault(edge.target, []).append(edge)
    nodes = dict.fromkeys((node.id for node in graph.nodes), 0.0)
    shares: dict[tuple[str, str], float] = {}
    for node in reversed(sorted_graph(graph).nodes):
        edges = into.get(node.id, ())
        total = max(sum(abs(edge.weight) for edge in edges), 1e-10)
        mass = nodes[node.id] + output_weight(node)
        for edge in edges:
            share = mass * abs(edge.weight) / total
            shares[edge.source, edge.target] = share
            nodes[edge.source] += share
    return nodes, shares


def output_weight(node: Node) -> float:
    """How much an output counts: a token by its probability; all other nodes nothing."""
    if not node.is_output:
        return 0.0
    return 1.0 if node.probability is None else node.probability
