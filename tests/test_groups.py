"""Supernodes: features with similar edges, proposed by the definition and by nothing else."""

import math
import random
from dataclasses import replace
from itertools import combinations

import pytest
from test_graphs import head

from circuitcli.graphs import CircuitGraph, Edge, Node
from circuitcli.graphs.groups import similar_groups

FEATURES = [f"{site}.{layer}/{index}" for layer in (1, 2) for site in ("mlp", "resid") for index in range(5)]
SOURCES = ["resid.0/0", "resid.0/1", "resid.0/error"]


def drawn(seed: int, *, unit_of=lambda target: 1.0) -> CircuitGraph:
    """A graph with numbers from a seed, in which each target's edges are in a unit of its own."""
    chance = random.Random(seed)
    names = [*SOURCES, *FEATURES, "output"]
    edges = []
    for source, target in combinations(names, 2):
        weight = chance.choice([0.0, 0.0, 1.0]) * chance.gauss(0, 1)
        if weight and source.partition("/")[0] != target.partition("/")[0]:
            edges.append(Edge(source, target, weight * unit_of(target), "nats"))
    return CircuitGraph(head(), tuple(Node(name, effect=chance.gauss(0, 1)) for name in names), tuple(edges))


def slow_groups(graph: CircuitGraph, least: float, span: int) -> set[frozenset[str]]:
    """Complete link, step by step: the two clusters that are alike the most become one, as long as they may."""
    into = {node.id: sum(abs(edge.weight) for edge in graph.edges if edge.target == node.id) for node in graph.nodes}

    def half(edges: list[tuple[str, float]]) -> dict[str, float]:
        length = math.sqrt(sum(value**2 for _, value in edges))
        return {name: value / length for name, value in edges}

    def cosine(one: str, other: str) -> float:
        total, lengths = 0.0, {one: 0, other: 0}
        for mine, far in (("target", "source"), ("source", "target")):
            halves = [
                half([(getattr(e, far), e.weight / into[e.target]) for e in graph.edges if getattr(e, mine) == name])
                for name in (one, other)
            ]
            total += sum(value * halves[1].get(name, 0.0) for name, value in halves[0].items())
            lengths = {name: lengths[name] + bool(part) for name, part in zip((one, other), halves, strict=True)}
        return total / math.sqrt(lengths[one] * lengths[other])

    def alike(one: str, other: str) -> float:
        (a, b) = (Node(name).place for name in (one, other))
        may = a.hook.site == b.hook.site and abs(a.hook.layer - b.hook.layer) <= span
        return cosine(one, other) if may else -math.inf

    ends = [end for edge in graph.edges for end in (edge.source, edge.target)]
    clusters = [{node.id} for node in graph.nodes if node.kind == "feature" and ends.count(node.id) > 1]
    while len(clusters) > 1:
        pairs = [(min(alike(u, v) for u in a for v in b), a, b) for a, b in combinations(clusters, 2)]
        closest, a, b = max(pairs, key=lambda pair: pair[0])
        if closest < least:
            break
        clusters = [cluster for cluster in clusters if cluster not in (a, b)] + [a | b]
    return {frozenset(cluster) for cluster in clusters if len(cluster) > 1}


@pytest.mark.parametrize(("least", "span"), [(0.6, 0), (0.3, 1), (0.05, 2)])
def test_groups_are_those_of_the_slow_definition_in_any_order_of_the_graph_and_in_any_units(least: float, span: int):
    for seed in range(3):
        graph = drawn(seed)
        found = similar_groups(graph, least=least, span=span)
        assert {frozenset(group.members) for group in found} == slow_groups(graph, least, span)
        turned = replace(graph, nodes=graph.nodes[::-1], edges=graph.edges[::-1])
        assert [group.members for group in similar_groups(turned, least=least, span=span)] == [
            group.members for group in found
        ]
        scaled = drawn(seed, unit_of=lambda target: 10.0 ** (len(target) % 3 - 1))
        assert {group.members for group in similar_groups(scaled, least=least, span=span)} == {
            group.members for group in found
        }
    assert found or least > 0.5, "an empty answer compares with nothing"


def test_a_group_has_only_features_of_one_site_that_have_several_edges():
    twins = [("resid.0/0", 2.0), ("resid.0/1", -1.0)]
    names = ["resid.1/1", "resid.1/2", "resid.1/error", "mlp.1/3", "resid.2/4"]
    edges = [Edge(source, name, weight, "nats") for name in names for source, weight in twins]
    edges += [Edge("resid.0/0", name, 1.0, "nats") for name in ("resid.1/8", "resid.1/9")]
    nodes = [*(name for name, _ in twins), *names, "resid.1/8", "resid.1/9"]
    graph = CircuitGraph(head(), tuple(map(Node, nodes)), tuple(edges))
    found = similar_groups(graph, least=0.99)
    assert [group.members for group in found] == [("resid.1/1", "resid.1/2")]
    assert found[0].cosine == pytest.approx(1)
    assert [group.members for group in similar_groups(graph, least=0.99, span=1)] == [
        ("resid.1/1", "resid.1/2", "resid.2/4")
    ]


def test_opposite_signs_are_no_likeness_and_graphs_without_edges_have_no_groups():
    graph = CircuitGraph(
        head(),
        tuple(map(Node, ("resid.0/0", "resid.0/1", "resid.1/1", "resid.1/2"))),
        tuple(
            Edge(f"resid.0/{source}", f"resid.1/{target}", sign * (source + 1.0), "nats")
            for source in (0, 1)
            for target, sign in ((1, 1.0), (2, -1.0))
        ),
    )
    assert [group.members for group in similar_groups(graph, least=0.5)] == [("resid.0/0", "resid.0/1")]
    assert similar_groups(replace(graph, edges=()), least=0.0) == similar_groups(CircuitGraph(head()), least=0.5) == ()
    silent = replace(graph, edges=tuple(replace(edge, weight=0.0) for edge in graph.edges))
    assert similar_groups(silent, least=0.0) == ()
