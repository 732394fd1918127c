"""Pruning a graph of any kind by cumulative influence, as attribution graphs are pruned."""

from dataclasses import replace

import numpy as np

from circuitcli.graphs.graph import CircuitGraph, Edge
from circuitcli.graphs.influence import ERROR, LOGIT, Rows, prune
from circuitcli.graphs.pruning import sorted_graph
from circuitcli.graphs.ranking import output_weight
from circuitcli.hookpoints import OUTPUT


def pruned_by_influence(graph: CircuitGraph, *, node_threshold: float, edge_threshold: float) -> CircuitGraph:
    """The nodes that have this share of the influence on the output by way of all paths, and between them the edges
    that have this share of theirs, without what leads nowhere (see `influence`). Nodes know their influence.

    Nothing needs to lead to a node: the first ones that a search has found have no edges into them.
    """
    graph = sorted_graph(graph)
    rows = _rows(graph)
    found = prune(rows, node_threshold=node_threshold, edge_threshold=edge_threshold)
    kept = {
        (graph.nodes[source].id, graph.nodes[target].id)
        for source, target in zip(found.rows.sources, found.rows.edge_targets, strict=True)
    }
    nodes = tuple(
        node if node.id == OUTPUT else replace(node, influence=float(found.influence[number]))
        for number, node in enumerate(graph.nodes)
        if found.nodes[number]
    )
    edges = tuple(edge for edge in graph.edges if (edge.source, edge.target) in kept)
    return replace(graph, nodes=nodes, edges=edges)


def _rows(graph: CircuitGraph) -> Rows:
    """The edges of a graph in the order of the model, by target."""
    by_target: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        by_target.setdefault(edge.target, []).append(edge)
    numbers = {node.id: number for number, node in enumerate(graph.nodes)}
    # The graph is in the order of the model: each edge leads to a later node.
    targets = sorted(by_target, key=lambda name: -numbers[name])
    ordered = [edge for name in targets for edge in by_target[name]]
    counts = [len(by_target[name]) for name in targets]
    is_output = np.array([node.is_output for node in graph.nodes], dtype=bool)
    return Rows(
        kinds=np.where(is_output, LOGIT, ERROR).astype(np.int8),
        orders=np.arange(len(graph.nodes), dtype=np.int32),
        weights=np.array([output_weight(node) for node in graph.nodes], dtype=np.float64),
        targets=np.array([numbers[name] for name in targets], dtype=np.int64),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sources=np.array([numbers[edge.source] for edge in ordered], dtype=np.int32),
        values=np.array([edge.weight for edge in ordered], dtype=np.float64),
    )
