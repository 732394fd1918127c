"""Graphs written by hand, and identities that hold for all graphs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcli.errors import InputError
from circuitcli.graphs import (
    CircuitGraph,
    Edge,
    Node,
    ablated_nodes,
    content_digest,
    edges_between,
    from_records,
    merged,
    restricted,
    sorted_graph,
    strongest_nodes,
    to_records,
)
from circuitcli.hookpoints import NodeId
from circuitcli.records import GraphRecord, NodeRecord, Stream, UnknownRecord

# beartype looks at random entries of the lists that a strategy builds a graph from.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


def head(**changes: object) -> GraphRecord:
    facts = {
        "name": "circuit",
        "method": "grad-ig",
        "metric": "log-prob",
        "prompt": "a b",
        "tokens": ("a", " b"),
        "metric_clean": -1.0,
        "metric_baseline": -9.0,
        "dtype": "float32",
        "unit": "nats",
        "baseline": "mean",
        "positions": "all",
        "model": "m",
        "saes": {"resid.0": "sha256:0", "resid.1": "sha256:1"},
    }
    return GraphRecord(**{**facts, **changes})


def graph(*edges: str, nodes: str = "", **changes: object) -> CircuitGraph:
    """Edges like ``resid.0/1>output`` of weight 1, and further nodes between spaces."""
    pairs = [tuple(edge.split(">")) for edge in edges]
    ids = dict.fromkeys([*nodes.split(), *(end for pair in pairs for end in pair)])
    return CircuitGraph(
        head(**changes),
        tuple(Node(id) for id in ids),
        tuple(Edge(source, target, 1.0, "nats") for source, target in pairs),
    )


def ids(some: CircuitGraph) -> list[str]:
    return [node.id for node in some.nodes]


layers = st.integers(0, 3)
places = st.builds("resid.{}/{}{}".format, layers, st.integers(0, 4), st.sampled_from(["", "@0", "@11", "@verb"]))
names = places | st.builds("resid.{}/error".format, layers) | st.just("output")
numbers = st.none() | st.floats(-9, 9)
shares = st.none() | st.floats(0, 1)


@st.composite
def graphs(draw: st.DrawFn, name: str = "circuit") -> CircuitGraph:
    """Any graph whose edges join its own nodes."""
    chosen = draw(st.lists(names, unique=True, max_size=8))
    units = st.sampled_from(["nats", None])
    nodes = tuple(Node(id, draw(numbers), draw(numbers), draw(units), draw(numbers), draw(shares)) for id in chosen)
    pairs = draw(st.lists(st.tuples(st.sampled_from(chosen), st.sampled_from(chosen)), unique=True)) if chosen else []
    edges = tuple(Edge(*pair, draw(st.floats(-9, 9)), "nats", draw(numbers), draw(shares)) for pair in pairs)
    return CircuitGraph(head(name=name), nodes, edges)


@given(graphs("one"), graphs("two"))
def test_graphs_come_back_from_their_records(one: CircuitGraph, two: CircuitGraph):
    between = UnknownRecord(kind="something")
    assert from_records(Stream([between, *to_records(one), between, *to_records(two)])) == [one, two]


def test_nodes_before_the_first_graph_belong_to_none():
    assert from_records(Stream([NodeRecord(id="output")])) == []


def test_an_edge_that_lost_an_end_to_a_filter_goes_too():
    whole = to_records(graph("resid.0/1>resid.1/2", "resid.1/2>output"))
    filtered = [record for record in whole if getattr(record, "id", "") != "resid.0/1"]
    (found,) = from_records(Stream(filtered))
    assert ids(found) == ["resid.1/2", "output"]
    assert [edge.source for edge in found.edges] == ["resid.1/2"]


def test_a_node_that_names_nothing_is_refused():
    with pytest.raises(InputError, match=r"node record: 'resid\.1'"):
        from_records(Stream([head(), NodeRecord.model_construct(id="resid.1")]))


@given(graphs(), st.sets(names))
def test_a_restricted_graph_has_all_edges_between_its_nodes(some: CircuitGraph, chosen: set[str]):
    kept = restricted(some, chosen)
    assert set(ids(kept)) == set(ids(some)) & chosen
    assert set(kept.edges) == {edge for edge in some.edges if {edge.source, edge.target} <= chosen}


@given(graphs())
def test_sorting_changes_the_order_only_and_only_once(some: CircuitGraph):
    ordered = sorted_graph(some)
    assert (set(ordered.nodes), set(ordered.edges)) == (set(some.nodes), set(some.edges))
    assert sorted_graph(ordered) == ordered


def test_nodes_are_sorted_as_the_model_computes_them_and_edges_by_target_and_strength():
    mixed = graph(nodes="output resid.1/error@0 resid.1/9@0 resid.1/2@1 mlp.1/3 resid.0/5 embed/1")
    weights = {"mlp.1/3": -3.0, "resid.0/5": 2.0, "embed/1": 3.0}
    edges = tuple(Edge(source, "output", weight, "nats") for source, weight in weights.items())
    ordered = sorted_graph(CircuitGraph(mixed.head, mixed.nodes, edges))
    expected = ["embed/1", "resid.0/5", "mlp.1/3", "resid.1/9@0", "resid.1/error@0", "resid.1/2@1", "output"]
    assert ids(ordered) == expected
    assert [edge.source for edge in ordered.edges] == ["embed/1", "mlp.1/3", "resid.0/5"]


def test_named_spans_are_sorted_as_the_head_names_them():
    names = ("subject", "noun", "verb")
    mixed = graph(nodes="output mlp.1/error@verb mlp_in.1/4@verb mlp_in.1/7@noun mlp_in.1/9@subject", span_names=names)
    in_order = ["mlp_in.1/9@subject", "mlp_in.1/7@noun", "mlp_in.1/4@verb", "mlp.1/error@verb", "output"]
    assert ids(sorted_graph(mixed)) == in_order
    by_name = ids(sorted_graph(replace(mixed, head=head())))
    assert by_name == ["mlp_in.1/7@noun", "mlp_in.1/9@subject", *in_order[2:]]


def test_where_both_graphs_know_a_number_the_new_one_holds():
    old = CircuitGraph(
        head(), (Node("resid.0/1", effect=1.0), Node("output")), (Edge("resid.0/1", "output", 1.0, "nats"),)
    )
    new = CircuitGraph(
        head(name="new"),
        (Node("resid.0/1", effect=2.0), Node("resid.1/3"), Node("output")),
        (Edge("resid.0/1", "output", 5.0, "nats"), Edge("resid.1/3", "output", 7.0, "nats")),
    )
    both = merged(old, new)
    assert both.by_id["resid.0/1"].effect == 2.0
    assert {(edge.source, edge.weight) for edge in both.edges} == {("resid.0/1", 5.0), ("resid.1/3", 7.0)}
    assert both.head == new.head


@given(graphs())
def test_a_graph_merged_with_itself_is_itself_in_order(some: CircuitGraph):
    assert merged(some, some) == sorted_graph(some)


@given(graphs(), graphs())
def test_merging_keeps_all_nodes_and_edges(one: CircuitGraph, other: CircuitGraph):
    both = merged(one, other)
    assert set(ids(both)) == {*ids(one), *ids(other)}
    assert {(edge.source, edge.target) for edge in both.edges} == {
        (edge.source, edge.target) for edge in (*one.edges, *other.edges)
    }


MEANING: dict[str, dict[str, object]] = {
    **{name: {name: "other"} for name in ("model", "revision", "dtype", "prompt", "target", "foil")},
    "method": {"method": "naive"},
    "metric": {"metric": "kl"},
    "unit": {"unit": "logits"},
    "baseline": {"baseline": "zero"},
    "positions": {"positions": "sum"},
    "steps": {"steps": 7},
    "edge points": {"edge_points": 7},
    "span names": {"span_names": ("verb",)},
    "prompts digest": {"prompts_digest": "sha256:9"},
    "set of hook points written from resid.1": {"writes": {"resid.1": ("resid.1", "resid.2")}},
    "ids": {"ids": (1, 3)},
    "target id": {"target_id": 9},
    "set of spliced hook points": {"saes": {"resid.1": "sha256:1"}},
    "SAE at resid.1": {"saes": {"resid.0": "sha256:0", "resid.1": "sha256:other"}},
}


@pytest.mark.parametrize("name", list(MEANING))
def test_graphs_whose_numbers_mean_different_things_cannot_be_merged(name: str):
    common = {"ids": (1, 2), "target_id": 5, "steps": 10}
    with pytest.raises(InputError, match=f"another {name}: ") as caught:
        merged(graph(**common), graph(**common | MEANING[name]))
    assert "--extend" in caught.value.hint


@pytest.mark.parametrize(
    ("baseline", "name", "values"),
    [
        ("mean", "baseline_tokens", (10, 20)),
        ("counterfactual", "counterfactual", ("a", "b")),
        ("resample", "seed", (0, 1)),
        ("resample", "baseline_ids", ((1, 2), (1, 3))),
    ],
)
def test_graphs_from_other_baselines_cannot_be_merged_and_what_a_baseline_does_not_read_is_no_matter(
    baseline: str, name: str, values: tuple
):
    one, other = ({"baseline": baseline, name: value} for value in values)
    with pytest.raises(InputError, match=f"another {name.replace('_', ' ')}: "):
        merged(graph(**one), graph(**other))
    assert merged(graph(**one | {"baseline": "zero"}), graph(**other | {"baseline": "zero"})).head.baseline == "zero"


def test_heads_of_an_earlier_version_can_be_extended_unless_they_lack_what_numbers_depend_on():
    common = {"ids": (1, 2), "target_id": 5}
    assert merged(graph(), graph(**common)).head.target_id == 5
    with pytest.raises(InputError, match="another seed: None"):
        merged(graph(baseline="resample"), graph(baseline="resample", seed=0, baseline_ids=(1, 2)))


DECIDING = [
    *({"ids": (1, 2)}, {"counterfactual": "b"}, {"baseline_ids": (3,)}, {"target": "b"}),
    *({"prompts_digest": "sha256:1"}, {"writes": {"resid.0": ("resid.1",)}}),
]


@pytest.mark.parametrize("other", DECIDING)
def test_what_decides_a_test_of_a_graph_decides_its_digest(other):
    edge = "resid.0/1>output"
    assert content_digest(graph(edge, **other)) != content_digest(graph(edge)) == content_digest(graph(edge, name="x"))


def test_what_a_test_ablates_are_features_and_errors_with_the_edges_out_of_them():
    names = ("embed/token@1", "resid.0/3@1", "resid.1/error@2", "logit/5", "output")
    effects = (9.0, 0.5, -2.0, 1.0, None)
    nodes = tuple(Node(name, effect=effect) for name, effect in zip(names, effects, strict=True))
    pairs = [
        (names[0], names[1], 9.0),
        (names[1], names[2], 0.1),
        (names[1], names[3], -0.7),
        (names[2], "output", 0.3),
    ]
    edges = tuple(Edge(source, target, weight, "nats") for source, target, weight in pairs)
    made = CircuitGraph(head(), nodes, edges)
    feature, error = NodeId.parse(names[1]), NodeId.parse(names[2])
    assert ablated_nodes(made) == (feature, error) and strongest_nodes(made) == (error, feature)
    assert edges_between(made) == ((feature, None), (error, None), (feature, error))
    by_influence = [replace(node, effect=None, influence=1 / rank) for rank, node in enumerate(nodes, 1)]
    assert strongest_nodes(replace(made, nodes=tuple(by_influence))) == (feature, error)
    unknown = [replace(node, effect=None) for node in nodes]
    assert strongest_nodes(replace(made, nodes=tuple(unknown))) == ()
