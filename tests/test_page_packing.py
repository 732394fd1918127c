"""The data of a page in less room is the same data, number for number."""

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from test_render import TEXT, nasty_drawing, scores, small_drawing, small_graph
from test_render_coders import IDS, many_prompts, random_graph

from circuitcli.graphs import CircuitGraph, Edge
from circuitcli.render.document import document, to_json
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.packing import packed, unpacked
from circuitcli.render.page import page

SMALL = small_graph()


def same(drawing: Drawing) -> bool:
    content = document(drawing)
    carried = json.loads(to_json(packed(content)))
    # Written out, 1 and True are told apart, and 0.0 and -0.0.
    return json.dumps(unpacked(carried), sort_keys=True) == json.dumps(content, sort_keys=True)


def test_packed_documents_are_unpacked_to_what_they_were():
    heads = replace(SMALL.edges[0], heads={"1.0": 0.25, "stream": -0.0})
    with_heads = replace(SMALL, edges=(heads, *SMALL.edges[1:]))
    graphs = [
        SMALL,
        with_heads,
        many_prompts(*IDS),
        random_graph(30, positions="all", seed=1),
        replace(SMALL, edges=()),
    ]
    assert all(same(draw(graph, max_edges=n)) for graph in graphs for n in (None, 1))
    assert same(small_drawing()) and same(draw(CircuitGraph(SMALL.head)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=5, max_size=5), st.lists(TEXT, min_size=1, max_size=4).map(tuple))
def test_any_weights_and_texts_are_kept(weights: list[float], texts: tuple[str, ...]):
    edges = tuple(
        Edge(edge.source, edge.target, weight, edge.unit) for edge, weight in zip(SMALL.edges, weights, strict=True)
    )
    assert same(draw(replace(SMALL, edges=edges), scores=scores()))
    assert same(nasty_drawing(texts))


def test_what_is_known_of_a_feature_stands_once_in_a_page():
    assert page(small_drawing()).count("names & ".replace("&", "\\u0026")) == 1
    assert sum(node["details"] is not None for node in document(small_drawing())["nodes"]) == 2
