"""What a reader has done to a page: read, fitted to a graph, and shown by pictures too."""

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_groups import drawn
from test_render import head, small_graph

import circuitcli
from circuitcli.errors import InputError
from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Edge, Node, to_records
from circuitcli.graphs.collapsing import collapsed
from circuitcli.graphs.groups import similar_groups
from circuitcli.graphs.ranking import first_edges, first_nodes, influences
from circuitcli.records import Stream
from circuitcli.render.document import document
from circuitcli.render.drawing import draw
from circuitcli.render.page import embedded
from circuitcli.render.seen import labelled, seen
from circuitcli.render.state import NamedGroup, State, fitted, read_state
from circuitcli.runs import Run
from circuitcli.settings.render import RenderSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages import render
from circuitcli.stages.request import Request

STATE = {
    "format": 1,
    "graph": "circuit",
    "pinned": "mlp.1/12@4",
    "by": "effect",
    "nodes": 5,
    "edges": 4,
    "groups": [{"name": "both </TD> & more", "members": ["resid.0/7@2", "resid.0/7@4"], "open": False}],
    "labels": {"resid.0/7": 'names "in" quotes', "mlp.1/12": "others"},
    "hidden": ["error"],
    "in_one_column": True,
    "theme": "dark",
    "zoom": [1, -2.5, 0.75],
}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def asked(graph: CircuitGraph, state: Path | None, *outputs: str) -> Request:
    settings = Settings(render=RenderSettings(output=outputs, state=None if state is None else str(state)))
    return Request(settings, Stream(to_records(graph)), Run(Path("nowhere")))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_state_comes_back_from_its_file_as_it_was(tmp_path: Path):
    state = read_state(written(tmp_path / "state.json", STATE))
    assert json.loads(state.model_dump_json()) == STATE
    assert read_state(written(tmp_path / "empty.json", {})) == State()
    assert read_state(written(tmp_path / "newer.json", {**STATE, "added": 1})) == state


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"format": "1"}, "format"),
        ({"nodes": -1}, "nodes"),
        ({"nodes": "many"}, "nodes"),
        ({"edges": 1.5}, "edges"),
        ({"by": "size"}, "by"),
        ({"groups": [{"name": "a"}]}, "groups.0.members"),
        ({"groups": {"a": []}}, "groups"),
        ({"labels": {"a": 3}}, "labels"),
        ({"labels": ["a"]}, "labels"),
        ({"hidden": ["boxes"]}, "hidden"),
        ({"zoom": [1, 2, 0]}, "zoom"),
        ({"zoom": [1, 2]}, "zoom"),
        ({"pinned": ""}, "pinned"),
        ({"theme": "pink"}, "theme"),
    ],
)
def test_a_damaged_state_is_refused_by_field_with_a_way_out(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(InputError, match=said) as caught:
        read_state(written(tmp_path / "state.json", {**STATE, **changes}))
    assert "--state" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", '{"labels": {"a": "\\ud800"}}', '{"zoom": [1, 1, 1e999]}', "[" * 500])
def test_what_is_no_state_at_all_is_refused(tmp_path: Path, text: str):
    with pytest.raises(InputError) as caught:
        read_state(written(tmp_path / "state.json", text))
    assert "--state" in caught.value.hint


def test_what_the_graph_lacks_is_told_and_left_out(inside: Path, caplog: pytest.LogCaptureFixture):
    groups = [{"name": "a", "members": ["resid.0/7@2", "gone", "resid.0/7@2"]}, *STATE["groups"]]
    state = State.model_validate_json(json.dumps({**STATE, "pinned": "resid.5/1", "groups": groups}))
    found, missing = fitted(state, small_graph())
    assert missing == ("resid.5/1", "gone") and found.pinned is None
    assert [group.members for group in found.groups] == [("resid.0/7@2", "resid.0/7@4")]
    path = written(inside / "state.json", {**STATE, "pinned": "resid.5/1"})
    render.run(asked(small_graph(), path, "a.html"), stdout=io.StringIO())
    assert "names a node that graph 'circuit' lacks" in caplog.text and "resid.5/1" in caplog.text
    assert embedded((inside / "a.html").read_text(encoding="utf-8"))["state"]["pinned"] is None


def test_a_node_is_in_one_group_only():
    twice = State(groups=(NamedGroup(members=("resid.0/7@2", "resid.0/7@4")),) * 2)
    assert len(fitted(twice, small_graph())[0].groups) == 1


def test_a_page_opens_in_the_state_and_pictures_show_labels_groups_and_thresholds(inside: Path):
    path = written(inside / "state.json", STATE)
    text = io.StringIO()
    render.run(asked(small_graph(), path, "a.html", "a.json", "-"), stdout=text)
    page = embedded((inside / "a.html").read_text(encoding="utf-8"))
    assert page["state"] == STATE
    assert len(page["document"]["nodes"]) == len(small_graph().nodes), "the page has all, whatever it shows"
    dot = text.getvalue()
    assert "both&#160;&lt;/TD&gt;&#160;&amp;&#160;more" in dot and "others" in dot
    assert "mlp.1/error@6" not in dot
    assert "4 of 5 nodes, 2 of them in 1 group; the whole has 5 edges".replace(" ", "&#160;") in dot
    assert "+0.125" in dot, "the sum of both edges into the node"
    text = io.StringIO()
    render.run(asked(small_graph(), written(path, {**STATE, "groups": [], "hidden": []}), "-"), stdout=text)
    assert "&#160;both" not in text.getvalue() and "names&#160;&quot;in&quot;&#160;quotes" in text.getvalue()


def test_what_a_state_does_not_tell_is_as_without_one(inside: Path):
    graph = small_graph()
    many = [Edge("resid.0/7@2", f"mlp.1/{n}@4", 1.0 + n, "nats") for n in range(400)]
    graph = replace(graph, nodes=(*graph.nodes, *(Node(edge.target) for edge in many[13:])), edges=tuple(many[13:]))
    for told, n_edges in (({"labels": {}}, 300), ({"edges": None}, 387), ({"edges": 20}, 20)):
        text = io.StringIO()
        render.run(asked(graph, written(inside / "state.json", told), "a.html", "-"), stdout=text)
        assert text.getvalue().count('tooltip="resid.0/7@2 →') == n_edges
        kept = embedded((inside / "a.html").read_text(encoding="utf-8"))["state"]
        assert ("edges" in kept) == ("edges" in told)


def test_python_draws_in_a_state_too(tmp_path: Path):
    path = written(tmp_path / "state.json", STATE)
    made = circuitcli.draw(small_graph(), state=path)
    assert "&#160;more" in made.dot and embedded(made.html)["state"] == STATE
    assert "&#160;more" not in circuitcli.draw(small_graph()).dot
    with pytest.raises(InputError, match="not the state"):
        circuitcli.draw(small_graph(), state=written(tmp_path / "other.json", {"nodes": -1}))


def test_the_first_nodes_and_edges_are_seen_and_no_box_that_lost_its_edges():
    graph = small_graph()
    assert set(seen(graph, State()).graph.edges) == set(graph.edges) and len(seen(graph, State()).graph.nodes) == 5
    assert ids(seen(graph, State(nodes=3)).graph) == {"output", "resid.0/7@2", "mlp.1/12@4"}
    assert ids(seen(graph, State(hidden=("feature",))).graph) == {"output", "mlp.1/error@6"}
    one = {"output", "resid.0/7@4", "mlp.1/error@6"}
    assert ids(seen(graph, State(edges=1)).graph) == one
    assert ids(seen(graph, State(edges=1, pinned="resid.0/7@2")).graph) == {*one, "resid.0/7@2"}
    assert ids(seen(graph, State(nodes=0)).graph) == ids(seen(graph, State(edges=0, nodes=0)).graph) == set()


def ids(graph: CircuitGraph) -> set[str]:
    return {node.id for node in graph.nodes}


def test_influence_is_what_all_paths_to_the_output_carry():
    graph = drawn(5)
    nodes, edges = influences(graph)
    into = {node.id: [edge for edge in graph.edges if edge.target == node.id] for node in graph.nodes}

    def share(edge: Edge) -> float:
        return abs(edge.weight) / sum(abs(other.weight) for other in into[edge.target])

    def reaching(name: str) -> float:
        out = (edge for edge in graph.edges if edge.source == name)
        return float(name == "output") + sum(share(edge) * reaching(edge.target) for edge in out)

    for node in graph.nodes:
        assert nodes[node.id] + (node.id == "output") == pytest.approx(reaching(node.id))
    for edge in graph.edges:
        assert edges[edge.source, edge.target] == pytest.approx(share(edge) * reaching(edge.target))
    ranked = first_nodes(graph, 99, by="influence")
    assert ranked[0].id == "output"
    assert [nodes[node.id] for node in ranked[1:]] == sorted((nodes[node.id] for node in ranked[1:]), reverse=True)
    assert len(first_edges(graph, 3, by="influence")) == 3
    assert set(first_edges(graph, 10**6, by="effect")) == set(graph.edges)


def test_a_group_has_the_sums_of_its_members_and_no_edge_to_itself():
    nodes = tuple(Node(f"resid.{n}/1", 1.0, (-1) ** n * (n + 1.0), "nats", standard_error=0.1) for n in range(5))
    every = [(a.id, b.id) for a, b in pairwise(nodes)] + [(a.id, c.id) for a, c in zip(nodes, nodes[2:], strict=False)]
    edges = tuple(Edge(*pair, number + 1.0, "nats", heads={"5.1": 1.0}) for number, pair in enumerate(every))
    graph = CircuitGraph(head(), nodes, edges)
    members = ("resid.1/1", "resid.2/1")
    joined, stands_for = collapsed(graph, [members])
    assert {name: node.id for name, node in stands_for.items()} == dict.fromkeys(members, "resid.2/1")
    assert [node.id for node in joined.nodes] == ["resid.0/1", "resid.2/1", "resid.3/1", "resid.4/1"]
    assert joined.by_id["resid.2/1"] == Node("resid.2/1", effect=-2.0 + 3.0, unit="nats")
    slow: dict[tuple[str, str], float] = {}
    for edge in edges:
        pair = tuple("resid.2/1" if end in members else end for end in (edge.source, edge.target))
        slow[pair] = slow.get(pair, 0.0) + edge.weight
    del slow["resid.2/1", "resid.2/1"]
    assert {(edge.source, edge.target): edge.weight for edge in joined.edges} == pytest.approx(slow)
    assert collapsed(graph, [])[0] == graph


def test_labels_are_of_features_that_nothing_was_known_of_too():
    details = {"resid.0/7": Details(id="resid.0/7", label="old", density=0.5)}
    found = labelled(details, State(labels={"resid.0/7": "new", "mlp.1/12": "first"}))
    assert (found["resid.0/7"].label, found["resid.0/7"].density) == ("new", 0.5)
    assert found["mlp.1/12"].label == "first"


def test_groups_are_proposed_unless_that_is_switched_off(inside: Path):
    graph = small_graph()
    twins = [Edge(f"resid.0/7@{p}", f"mlp.1/{n}@4", 1.0, "nats") for p in (2, 4) for n in (3, 4)]
    graph = replace(graph, nodes=(*graph.nodes, Node("mlp.1/3@4"), Node("mlp.1/4@4")), edges=(*graph.edges, *twins))
    render.run(asked(graph, None, "a.json"), stdout=io.StringIO())
    found = json.loads((inside / "a.json").read_text(encoding="utf-8"))["groups"]
    assert [group["members"] for group in found] == [list(group.members) for group in similar_groups(graph, least=0.8)]
    assert ["mlp.1/3@4", "mlp.1/4@4"] in [group["members"] for group in found]
    off = Request(Settings(render=RenderSettings(output=("b.json",), groups=0)), Stream(to_records(graph)), Run(inside))
    render.run(off, stdout=io.StringIO())
    assert json.loads((inside / "b.json").read_text(encoding="utf-8"))["groups"] == []


def test_links_lead_to_pages_of_features_that_are_there_and_to_what_neuronpedia_has(tmp_path: Path):
    known = {"resid.0": "gpt2-small/0-res-jb", "mlp.1": "javascript:alert(1)", "attn.1": "a/b/../c"}
    drawing = draw(small_graph(neuronpedia=known))
    assert document(drawing)["links"] == {
        "features": None,
        "neuronpedia": {"resid.0": "https://www.neuronpedia.org/gpt2-small/0-res-jb"},
    }
    run = tmp_path / "a run"
    request = asked(small_graph(), None, str(tmp_path / "out" / "a.json"), str(run / "figures" / "b.json"))
    request = replace(request, run=Run(run))
    (run / "figures").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    render.run(request, stdout=io.StringIO())
    assert json.loads((tmp_path / "out" / "a.json").read_text())["links"]["features"] is None
    (run / "features" / "html").mkdir(parents=True)
    (run / "features" / "html" / "feature.html").touch()
    render.run(request, stdout=io.StringIO())
    assert [
        json.loads(path.read_text())["links"]["features"]
        for path in (tmp_path / "out" / "a.json", run / "figures" / "b.json")
    ] == ["../a%20run/features/html/feature.html", "../features/html/feature.html"]
