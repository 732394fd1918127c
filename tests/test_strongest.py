"""Few boxes of a large graph: the strongest, with their ways to the output, and what is left out is said."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from test_render import head, small_graph

from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.render.document import document
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import draw
from circuitcli.render.heading import notes
from circuitcli.render.strongest import strongest_nodes
from circuitcli.settings.render import RenderSettings


def layered(seed: int, *, n_layers: int = 4, width: int = 3, density: float = 0.5, with_effects: bool = True):
    """A random graph of a few layers; some nodes reach the output, some do not."""
    drawn = random.Random(seed)
    layers = [[f"resid.{layer}/{index}" for index in range(width)] for layer in range(n_layers)]
    effects = {name: drawn.uniform(-1, 1) if with_effects else None for layer in layers for name in layer}
    nodes = [*(Node(name, 1.0, effect, "nats") for name, effect in effects.items()), Node("output")]
    pairs = [
        (source, target) for lower, upper in pairwise([*layers, ["output"]]) for source in lower for target in upper
    ]
    pairs += [(source, "output") for layer in layers for source in layer if drawn.random() < 0.1]
    kept = [pair for pair in dict.fromkeys(pairs) if drawn.random() < density]
    return CircuitGraph(head(), tuple(nodes), tuple(Edge(*pair, drawn.uniform(-1, 1), "nats") for pair in kept))


def ways(graph: CircuitGraph, name: str) -> Iterator[tuple[Edge, ...]]:
    """All ways from a node to the output: the slow definition."""
    if name == "output":
        yield ()
    for edge in graph.edges:
        if edge.source == name:
            for rest in ways(graph, edge.target):
                yield (edge, *rest)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_nodes", [1, 3, 6, 100])
def test_the_strongest_are_drawn_with_the_way_whose_weakest_edge_is_strongest(seed: int, n_nodes: int) -> None:
    graph = sorted_graph(layered(seed))
    kept, edges = strongest_nodes(graph, n_nodes, strength=lambda edge: abs(edge.weight))
    expected = {"output"}
    for node in sorted((node for node in graph.nodes if not node.is_output), key=lambda node: -abs(node.effect or 0)):
        found = [*ways(graph, node.id)]
        bottleneck = max((min(abs(edge.weight) for edge in way) for way in found), default=0.0)
        best = [way for way in found if min(abs(edge.weight) for edge in way) == bottleneck]
        additions = [{node.id, *(edge.target for edge in way)} - expected for way in best] or [{node.id} - expected]
        # Ways that share their weakest edge are equally good.
        chosen = [new for new in additions if new <= kept] or additions
        if len(expected) + min(map(len, chosen)) <= n_nodes + 1 and any(new <= kept for new in chosen):
            expected |= next(new for new in chosen if new <= kept)
    assert kept == expected
    assert len(kept) <= n_nodes + 1
    assert {end for edge in edges for end in (edge.source, edge.target)} <= kept


@pytest.mark.parametrize("seed", range(8))
def test_what_reaches_the_output_in_the_graph_reaches_it_in_the_picture_however_few_edges_are_drawn(seed: int) -> None:
    graph = layered(seed, n_layers=5, density=0.7)
    drawing = draw(graph, max_nodes=5, max_edges=5)
    shown = CircuitGraph(graph.head, drawing.nodes, drawing.edges)
    assert 1 < len(drawing.nodes) <= 6 and Node("output") in drawing.nodes
    for node in drawing.nodes:
        assert bool([*ways(shown, node.id)]) or not [*ways(graph, node.id)]


@pytest.mark.parametrize("with_effects", [True, False])
def test_the_picture_says_how_much_is_left_out_and_the_document_has_all(with_effects: bool) -> None:
    graph = layered(1, n_layers=6, width=5, density=0.8, with_effects=with_effects)
    drawing = draw(graph, max_nodes=7)
    told = " ".join(notes(drawing))
    assert f"{drawing.n_hidden_nodes} of 31 nodes" in told and drawing.n_hidden_nodes >= 23
    n_left_out = len(graph.edges) - len(drawing.edges)
    assert f"{n_left_out} of {len(graph.edges)} edges in nats" in told and "the weakest" not in told
    if with_effects:
        drawn = {node.id for node in drawing.nodes}
        sizes = {node.id: abs(node.effect or 0.0) for node in graph.nodes}
        hidden = sum(size for name, size in sizes.items() if name not in drawn)
        assert f"{100 * hidden / sum(sizes.values()):.1f} % of the total |effect|" in told
    content = document(drawing)
    assert len(content["nodes"]) == 31 and sum(node["drawn"] for node in content["nodes"]) == len(drawing.nodes)


def test_a_limit_that_nothing_reaches_changes_no_byte_but_a_smaller_one_does() -> None:
    plain, limited = (dot_source(draw(small_graph(), max_nodes=limit), RenderSettings()) for limit in (None, 4))
    assert plain == limited
    assert dot_source(draw(small_graph(), max_nodes=1), RenderSettings()) != plain
