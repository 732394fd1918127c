"""Pruning graphs by cumulative influence."""

import pytest
from subjects import random_baseline, random_subject
from test_selection import grad_graph

from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.cumulative import pruned_by_influence
from circuitcli.hookpoints import OUTPUT


def influences(graph: CircuitGraph) -> dict[str, float]:
    """By its definition, over all paths to the output: each edge counts as its share of what leads to its target."""
    totals: dict[str, float] = {}
    for edge in graph.edges:
        totals[edge.target] = totals.get(edge.target, 0.0) + abs(edge.weight)

    def of(name: str) -> float:
        if name == OUTPUT:
            return 1.0
        out = [edge for edge in graph.edges if edge.source == name]
        return sum(abs(edge.weight) / totals[edge.target] * of(edge.target) for edge in out)

    return {node.id: of(node.id) for node in graph.nodes if node.id != OUTPUT}


def test_nodes_are_kept_by_their_influence_over_all_paths():
    subject = random_subject("gpt2", sites=("attn", "mlp"), layers=(0, 1), n=4, first=1)
    graph = grad_graph(subject, random_baseline(subject), down=3, up=2, min_share=0)[2]
    expected = influences(graph)
    whole = pruned_by_influence(graph, node_threshold=1.0, edge_threshold=1.0)
    assert {node.id: node.influence for node in whole.nodes if node.influence} == pytest.approx(
        {name: value for name, value in expected.items() if value > 0}
    )
    assert {(e.source, e.target) for e in whole.edges} == {(e.source, e.target) for e in graph.edges if e.weight != 0}
    some = pruned_by_influence(graph, node_threshold=0.5, edge_threshold=0.9)
    kept = {node.id for node in some.nodes} - {OUTPUT}
    ranked = sorted(expected, key=lambda name: -expected[name])
    assert 0 < len(kept) < len(graph.nodes) - 1
    # The fewest of the most influential that have half of all influence; edges that fall may take more along.
    assert kept <= set(
        ranked[: next(n for n in range(99) if sum(expected[r] for r in ranked[:n]) >= 0.5 * sum(expected.values()))]
    )
    assert all(any(edge.source == name for edge in some.edges) for name in kept)
