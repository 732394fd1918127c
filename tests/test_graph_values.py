"""A graph as a value: it goes to a file and back, to tables, to networkx and into a notebook, with every number."""

import math
import re
import shutil
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import networkx
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from test_graphs import graph, graphs, head

from circuitcli import display
from circuitcli.errors import InputError, ToolError
from circuitcli.graphs import CircuitGraph, Edge, Node
from circuitcli.hookpoints import NodeId
from circuitcli.render.page import embedded

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

MANY = CircuitGraph(
    head(
        **{"n_prompts": 3, "prompts": "pairs.jsonl", "span_names": ("subject", "verb"), "positions": "spans"},
        **{"saes": {"mlp_in.1": "sha256:0", "resid.1": "sha256:1"}, "writes": {"mlp_in.1": ("mlp.1", "mlp.2")}},
    ),
    (
        Node("mlp_in.1/331@verb", 2.0, 0.5, "nats", 0.1, 1.0),
        Node("mlp.1/error@subject", None, -0.25, "nats", 0.2, 2 / 3),
        Node("output"),
    ),
    (Edge("mlp_in.1/331@verb", "output", 0.75, "nats", 0.05, 1.0),),
)


@given(graphs())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_a_graph_comes_back_from_its_file(tmp_path: Path, some: CircuitGraph):
    some.save(tmp_path / "graph.jsonl")
    assert CircuitGraph.load(tmp_path / "graph.jsonl") == some
    assert [path.name for path in tmp_path.iterdir()] == ["graph.jsonl"]


def test_of_several_graphs_in_a_file_the_last_is_loaded_or_the_one_that_is_named(tmp_path: Path):
    parts = [graph("resid.0/1>output", name=name) for name in ("one", "two", "three")]
    for number, part in enumerate(parts):
        part.save(tmp_path / str(number))
    path = tmp_path / "all.jsonl"
    path.write_text("".join((tmp_path / str(number)).read_text() for number in range(3)))
    assert CircuitGraph.load(str(path)) == parts[2]
    assert CircuitGraph.load(path, name="one") == parts[0]
    with pytest.raises(InputError, match="no graph named 'four'") as caught:
        CircuitGraph.load(path, name="four")
    assert "one two three" in caught.value.hint


def test_what_is_no_file_of_a_graph_is_refused(tmp_path: Path):
    (tmp_path / "empty").write_text("")
    for name, told in (("empty", "holds no graph"), ("missing", "missing")):
        with pytest.raises(InputError, match=told) as caught:
            CircuitGraph.load(tmp_path / name)
        assert caught.value.hint
    with pytest.raises(InputError, match=r"cannot write .*No such file") as caught:
        MANY.save(tmp_path / "nowhere" / "graph.jsonl")
    assert caught.value.hint


@given(graphs())
def test_tables_have_a_row_for_each_node_and_edge_with_every_number(some: CircuitGraph):
    nodes, edges = some.to_pandas()
    assert len(nodes) == len(some.nodes) and len(edges) == len(some.edges)
    for node, row in zip(some.nodes, nodes.to_dict("records"), strict=True):
        told = {name: None if pandas.isna(value) else value for name, value in row.items()}
        assert told.pop("id") == node.id
        values = [told.pop(name) for name in ("activation", "effect", "unit", "standard_error", "active")]
        assert values == [node.activation, node.effect, node.unit, node.standard_error, node.active]
        if told["kind"] != "output":
            hook, position = NodeId.parse(node.id).hook, told["position"]
            is_number = position is not None and str(position).isdecimal()
            again = NodeId(hook, told["feature"], int(position) if is_number else position)
            assert str(again) == node.id and (told["hook"], told["layer"], told["site"]) == (
                str(hook),
                hook.layer,
                hook.site,
            )
            assert told["is_error"] == (told["kind"] == "error") == again.is_error
    for edge, row in zip(some.edges, edges.to_dict("records"), strict=True):
        told = {name: None if pandas.isna(value) else value for name, value in row.items()}
        assert Edge(**told) == edge


@pytest.mark.parametrize("some", [graph(), graph(nodes="output embed/1@0"), MANY], ids=["empty", "one prompt", "spans"])
def test_columns_have_the_same_types_whatever_a_graph_lacks(some: CircuitGraph):
    nodes, edges = some.to_pandas()
    types = {name: str(kind) for name, kind in nodes.dtypes.items()}
    assert types.pop("position") == ("string" if some is MANY else "Int64")
    numbers = {name for name, kind in types.items() if kind == "float64"}
    assert numbers == {"activation", "effect", "standard_error", "active", "influence", "probability"}
    assert (types["layer"], types["feature"], types["is_error"]) == ("Int64", "Int64", "boolean")
    assert all(kind in ("string", "float64") for kind in map(str, edges.dtypes))


def test_tokens_are_those_of_the_prompt_or_alternatives_of_several():
    nodes, _ = graph(nodes="resid.0/1@1 output").to_pandas()
    assert nodes.token.tolist()[0] == " b"
    columns = (("the",), (" cat", " dog"))
    nodes, _ = graph(nodes="resid.0/1@1 output", n_prompts=2, columns=columns).to_pandas()
    assert nodes.token.tolist()[0] == " cat |  dog"


def test_networkx_gets_the_same_with_what_is_not_known_left_out(tmp_path: Path):
    made = MANY.to_networkx()
    assert isinstance(made, networkx.DiGraph) and made.graph["prompts"] == "pairs.jsonl"
    assert dict(made.nodes["mlp_in.1/331@verb"]) == {
        **{"kind": "feature", "hook": "mlp_in.1", "layer": 1, "site": "mlp_in", "feature": 331, "is_error": False},
        **{"position": "verb", "activation": 2.0, "effect": 0.5, "standard_error": 0.1, "active": 1.0, "unit": "nats"},
    }
    assert dict(made.nodes["output"]) == {"kind": "output", "is_error": False}
    assert made.edges["mlp_in.1/331@verb", "output"] == {
        **{"weight": 0.75, "standard_error": 0.05, "active": 1.0, "unit": "nats"}
    }
    made.graph.clear()
    networkx.write_graphml(made, tmp_path / "graph.graphml")
    assert networkx.read_graphml(tmp_path / "graph.graphml").nodes["mlp_in.1/331@verb"]["effect"] == 0.5


@pytest.mark.parametrize(("name", "method"), [("pandas", "to_pandas"), ("networkx", "to_networkx")])
def test_a_missing_library_is_named_with_how_to_install_it(name: str, method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ToolError, match=f"'{name}'") as caught:
        getattr(MANY, method)()
    assert caught.value.hint == f"pip install {name}"


def test_a_notebook_shows_the_page_in_a_frame_of_its_own_and_a_picture(monkeypatch: pytest.MonkeyPatch):
    html = MANY._repr_html_()
    (source,) = re.findall(r'<iframe srcdoc="([^"]*)"', html)
    assert [node["id"] for node in embedded(unescape(source))["document"]["nodes"]] == [node.id for node in MANY.nodes]
    if shutil.which("dot"):
        assert "<svg" in MANY._repr_svg_() and "331" in MANY._repr_svg_()
    monkeypatch.setenv("PATH", "")
    assert MANY._repr_svg_() is None
    assert replace(MANY, edges=(replace(MANY.edges[0], weight=math.nan),))._repr_html_() is None


def test_a_graph_is_one_line_of_text_and_what_a_drawer_makes_of_it_in_a_notebook():
    assert repr(MANY) == "<CircuitGraph 'circuit' of 3 prompts: 3 nodes, 1 edges>"
    before = display._drawer
    try:
        display.set_drawer(lambda value, form: f"{form} of {len(value.nodes)}")
        assert (MANY._repr_svg_(), MANY._repr_html_()) == ("svg of 3", "html of 3")
        display.set_drawer(None)
        assert MANY._repr_svg_() is MANY._repr_html_() is None
    finally:
        display.set_drawer(before)
