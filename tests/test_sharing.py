"""Circuits for other programs: each format is read back whole, by us and by the library that it is for."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import networkx
import pandas
import pytest
from cli_support import here
from hypothesis import given, settings
from hypothesis import strategies as st

import circuitcli
from circuitcli.errors import InputError, SettingsError
from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph, to_records
from circuitcli.graphs.exchange import (
    csv_tables,
    formats,
    gexf,
    graphml,
    neuronpedia,
    neuronpedia_features,
    neuronpedia_files,
)
from circuitcli.graphs.exchange.neuronpedia_schema import parsed, problems
from circuitcli.graphs.exchange.shared import Shared, file_name
from circuitcli.records import GraphRecord, to_line
from circuitcli.render.drawing import draw
from circuitcli.render.mermaid import MOST_CHARACTERS, mermaid
from circuitcli.settings.render import RenderSettings

NASTY = (
    '"',
    "<pad>",
    "a&b",
    "\n",
    "\r\n",
    "\\",
    "]]>",
    "</script>",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ufffe",
    "😀",
    "東",
)
NASTY += ("'", "-->|x|", "%%", "#35;", "`", "\t", "\x85", "=1+1", "(p=0.9)", "", " ", "é\u0301" * 9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(NASTY)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


def head(**changes: object) -> GraphRecord:
    fields = {
        "name": "circuit",
        "method": "grad-ig",
        "metric": "log-prob",
        "prompt": " ".join(NASTY),
        "tokens": NASTY,
        "ids": range(100, 100 + len(NASTY)),
        "metric_clean": -0.612,
        "metric_baseline": -9.4,
        "dtype": "float32",
        "unit": "nats",
        "baseline": "mean",
        "positions": "all",
        "model": "owner/Model-1B",
        "target": ' "Mary"',
        "target_id": 7,
        "saes": {"resid.0": "sha256:a", "mlp.1": "sha256:b"},
    }
    return GraphRecord.model_validate({**fields, **changes})


def small() -> CircuitGraph:
    """Several sites to a layer, errors, tokens of hostile text, an output; numbers and parts of edges of all kinds."""
    nodes = (
        Node("embed/token@3", influence=0.25),
        Node("resid.0/7@2", 3.25, 0.5, "nats", standard_error=0.125, active=0.5, influence=0.75),
        Node("attn.1/7@2", 1.5, -0.25, "nats"),
        Node("mlp.1/7@2", 2.0, 0.75, "nats"),
        Node("mlp.1/error@6", None, 1e-30, "nats"),
        Node("resid.1/error@6", None, 0.0625, "nats"),
        Node("output"),
    )
    edges = (
        Edge("embed/token@3", "attn.1/7@2", 0.1, "pre-activation", heads={"1.0": 0.0625, "others": 0.0375}),
        Edge("resid.0/7@2", "mlp.1/7@2", -0.125, "nats", standard_error=0.5, active=1.0, exact=0.25),
        Edge("attn.1/7@2", "mlp.1/7@2", 2.0, "nats"),
        Edge("mlp.1/7@2", "output", 1e300, "nats"),
        Edge("mlp.1/error@6", "resid.1/error@6", 5e-324, "nats"),
    )
    return CircuitGraph(head(), nodes, edges)


def transcoded() -> CircuitGraph:
    """One hook point to a layer, and output tokens: as circuit-tracer's own graphs."""
    nodes = (
        Node("embed/token@0", influence=0.5),
        Node("mlp_in.0/5@3", 1.0, influence=0.5),
        Node("mlp.0/error@3", influence=0.25),
        Node("mlp_in.5/5@3", 2.0, influence=0.125),
        Node("mlp.5/error@3", influence=0.0625),
        Node("logit/464", probability=0.75),
        Node("logit/5", probability=0.125),
    )
    edges = (
        Edge("embed/token@0", "mlp_in.0/5@3", 1.0, "pre-activation"),
        Edge("mlp_in.0/5@3", "mlp_in.5/5@3", -1.0, "pre-activation"),
        Edge("mlp.0/error@3", "mlp_in.5/5@3", 0.5, "pre-activation"),
        Edge("mlp_in.5/5@3", "logit/464", 2.0, "logits"),
        Edge("mlp.5/error@3", "logit/5", -2.0, "logits"),
    )
    about = {"method": "frozen", "logits": {"logit/464": ' "x" (p=', "logit/5": NASTY[3]}, "node_threshold": 0.8}
    return CircuitGraph(head(**about, replacement=0.5, completeness=0.75), nodes, edges)


def summed() -> CircuitGraph:
    """Of several prompts, without positions."""
    nodes = (Node("resid.0/7", 1.0, 0.5, "nats"), Node("resid.0/error", None, 0.5, "nats"), Node("output"))
    edges = (Edge("resid.0/7", "output", 0.5, "nats"), Edge("resid.0/error", "output", 0.5, "nats"))
    return CircuitGraph(head(n_prompts=3, positions="sum"), nodes, edges)


def spans() -> CircuitGraph:
    """Of several prompts, with names that stand for positions, and a node at all of them."""
    nodes = (Node("resid.2/7@subject", 1.0), Node("resid.2/7@verb", 2.0), Node("resid.3/7", 2.0), Node("output"))
    edges = (Edge("resid.2/7@subject", "resid.3/7", 0.5, "nats"), Edge("resid.3/7", "output", 0.5, "nats"))
    return CircuitGraph(head(n_prompts=3, positions="spans", span_names=("verb", "subject")), nodes, edges)


GRAPHS = {"sites": small, "transcoders": transcoded, "summed": summed, "spans": spans}
all_graphs = pytest.mark.parametrize("graph", [make() for make in GRAPHS.values()], ids=GRAPHS)


@st.composite
def shared(draw: st.DrawFn) -> Shared:
    """One of the graphs, with other numbers, hostile texts for labels and prompt, groups and pinned nodes."""
    graph = draw(st.sampled_from([make() for make in GRAPHS.values()]))
    nodes = tuple(replace(node, activation=draw(numbers), effect=draw(numbers)) for node in graph.nodes)
    edges = tuple(replace(edge, weight=draw(numbers)) for edge in graph.edges)
    prompt = draw(texts)
    about = graph.head.model_copy(update={"prompt": prompt, "target": draw(texts)})
    names = {place.feature for node in nodes if (place := node.place) and place.index is not None}
    features = {name: {"label": label} for name in sorted(names) if (label := draw(texts).strip())}
    groups = ((draw(texts), (nodes[0].id, nodes[1].id)), (draw(texts), ()))
    return Shared(CircuitGraph(about, nodes, edges), features, groups, (nodes[0].id,))


def labels(one: Shared) -> dict[str, object]:
    return {name: content["label"] for name, content in one.features.items() if content.get("label")}


def written(one: Shared, folder: Path) -> Path:
    """The files of Neuronpedia's format."""
    path = folder / "graph.json"
    for place, text in neuronpedia_files.files(one, path, scan=None, source_set=None, version="1"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return path


quick = settings(max_examples=25, deadline=None)


# Neuronpedia: required fields with their types, as its schema states them.
SCHEMA = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "node": {
        **{"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str},
        "clerp": str,
    },
    "link": {"source": str, "target": str, "weight": float},
}


@quick
@given(one=shared())
def test_a_graph_in_neuronpedias_format_is_read_back_whole(one: Shared):
    with TemporaryDirectory() as folder:
        back = formats.read(written(one, Path(folder)))
    assert back is not None and back.graph == one.graph
    assert (labels(back), back.groups, back.pinned) == (labels(one), one.groups, one.pinned)


@all_graphs
def test_neuronpedias_schema_and_page_take_the_graph(graph: CircuitGraph, tmp_path: Path):
    path = written(Shared(graph, {}, groups=(("both", (graph.nodes[0].id,)),)), tmp_path)
    content = json.loads(path.read_text())
    parts = [("metadata", [content["metadata"]]), ("node", content["nodes"]), ("link", content["links"])]
    for kind, found in parts:
        for part in found:
            assert {name: type(part[name]) for name in SCHEMA[kind]} == SCHEMA[kind]
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph.nodes)
    assert {end for link in content["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert not [*problems(parsed(content, name="graph"))]
    # The page finds features by these three numbers, and counts positions from 0.
    kinds = [node for node in content["nodes"] if node["feature_type"] == neuronpedia.FEATURE]
    assert len({(node["layer"], node["feature"], node["ctx_idx"]) for node in kinds}) == len(kinds)
    for node in kinds:
        assert neuronpedia.unpair(node["feature"])[0] == int(node["layer"])
    assert {node["ctx_idx"] for node in content["nodes"]} <= set(range(len(content["metadata"]["prompt_tokens"])))
    # Its slider runs over shares of the influence, of which the least influential has all.
    ranks = [node["influence"] for node in content["nodes"] if node["influence"] is not None]
    assert ranks and max(ranks) == pytest.approx(1) and min(ranks) > 0
    # Its parser of logits: the number behind the first bracket.
    for node in content["nodes"]:
        if node["feature_type"] == "logit":
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(node["token_prob"], abs=1e-3)
    assert json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"][0]["slug"] == "graph"


def test_ids_of_errors_are_never_those_of_features(tmp_path: Path):
    """In circuit-tracer's files the error of layer 5 at position 3 is called as feature 5 of layer 0 there."""
    content = json.loads(written(Shared(transcoded()), tmp_path).read_text())
    ids = {node["node_id"]: node["feature_type"] for node in content["nodes"]}
    assert ids["0_5_3"] == neuronpedia.FEATURE and ids["5_error_mlp_3"] == neuronpedia.ERROR


def test_a_graph_of_another_program_is_read_as_far_as_it_tells(tmp_path: Path):
    path = written(Shared(transcoded(), {"mlp_in.5/5": {"label": "says"}}), tmp_path)
    content = json.loads(path.read_text())
    for part in (content["metadata"], *content["nodes"], *content["links"]):
        del part["circuit"]
    # As circuit-tracer names it; nothing leads to an error.
    names = {"0_error_mlp_3": "0_0_3", "5_error_mlp_3": "0_5_3"}
    for node in content["nodes"]:
        node["node_id"] = names.get(node["node_id"], node["node_id"])
    for link in content["links"]:
        link["source"] = names.get(link["source"], link["source"])
    path.write_text(json.dumps(content))
    (graph, found) = ((back := formats.read(path)).graph, labels(back))
    wanted = transcoded()
    assert {node.id for node in wanted.nodes} - {node.id for node in graph.nodes} == {"mlp.5/error@3"}
    assert {(edge.source, edge.target, edge.weight, edge.unit) for edge in wanted.edges[:4]} <= {
        (edge.source, edge.target, edge.weight, edge.unit) for edge in graph.edges
    }
    texts_of_logits = {name: text.replace("(p=", "(p =") for name, text in wanted.head.logits.items()}
    assert graph.head.logits == texts_of_logits and graph.by_id["logit/464"].probability == 0.75
    assert (graph.head.origin, graph.head.model, graph.head.metric_clean) == ("circuit", "model-1b", None)
    assert graph.by_id["mlp_in.0/5@3"].influence == pytest.approx(0.5 / 1.4375)
    assert found == {"mlp_in.5/5": "says"}


@pytest.mark.parametrize("head", [7, "x", ["a"], None, True])
def test_a_head_that_is_none_makes_a_file_another_programs(head: object, tmp_path: Path):
    circuitcli.write_graph(small(), tmp_path / "g.json", as_="neuronpedia")
    content = json.loads((tmp_path / "g.json").read_text())
    content["metadata"]["circuit"]["head"] = head
    (tmp_path / "g.json").write_text(json.dumps(content))
    found = circuitcli.read_graph(tmp_path / "g.json")
    assert {node.id for node in found.nodes} == {node.id for node in small().nodes}
    assert found.head.origin == "circuit"


def test_features_lie_beside_the_graph_and_come_back_with_it(tmp_path: Path):
    context = {"tokens": list(NASTY[:3]), "activations": [0.0, 2.5, 1.0], "peak": 1, "block": 4, "position": 9}
    known = {"label": "a", "density": 0.25, "max": 2.5, "promoted": [["x", 1.5]], "contexts": [context]}
    known = Details.model_validate({"id": "mlp_in.5/5", **known})
    circuitcli.write_graph(transcoded(), tmp_path / "g.json", as_="neuronpedia", cards=[known], scan="gemma-2-2b")
    number = neuronpedia.pair(5, 5)
    content = json.loads((tmp_path / "features" / "gemma-2-2b" / f"{number}.json").read_text())
    # Of the schema of feature files, and what circuit-tracer's page needs to scale its colours.
    assert content["index"] == number and content["top_logits"] == ["x"] and content["act_max"] == 2.5
    (example,) = content["examples_quantiles"][0]["examples"]
    assert (example["tokens"], example["tokens_acts_list"]) == (context["tokens"], context["activations"])
    assert example["train_token_ind"] == 1 and content["activation_frequency"] == 0.25
    (back,) = circuitcli.read_cards(tmp_path / "g.json")
    assert back == known
    del content["circuit"]
    (tmp_path / "features" / "gemma-2-2b" / f"{number}.json").write_text(json.dumps(content))
    (back,) = circuitcli.read_cards(tmp_path / "g.json")
    assert (back.label, back.density, back.contexts[0].activations) == ("a", 0.25, (0.0, 2.5, 1.0))


def test_the_strongest_contexts_of_a_feature_are_one_group_before_those_at_lower_quantiles():
    shares = [0.2, 1.0, 0.987, 0.95, 0.601, 0.598, None]
    contexts = [{"tokens": [str(n)], "activations": [1.0], "peak": 0, "quantile": q} for n, q in enumerate(shares)]
    content = neuronpedia_features.content({"id": "mlp_in.5/5", "contexts": contexts}, number=1)
    told = [
        (group["quantile_name"], [one["tokens"][0] for one in group["examples"]])
        for group in content["examples_quantiles"]
    ]
    below = "Activations at quantile {}".format
    assert told == [("Top activations", ["1", "2", "3", "6"]), (below(0.6), ["4", "5"]), (below(0.2), ["0"])]


def test_a_folder_of_graphs_lists_each_once(tmp_path: Path):
    for name in ("one", "two", "one"):
        circuitcli.write_graph(small(), tmp_path / f"{name}.json", as_="neuronpedia")
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [one["slug"] for one in listed] == ["two", "one"] and "circuit" not in listed[0]


def test_pairs_of_numbers_are_told_apart():
    """Cantor's pairing counts diagonal by diagonal."""
    diagonals = [(total - index, index) for total in range(40) for index in range(total + 1)]
    assert [neuronpedia.pair(*one) for one in diagonals] == [*range(len(diagonals))]
    large = [(layer, index) for layer in (0, 7, 200) for index in (0, 10**6, 10**7)]
    assert [neuronpedia.unpair(neuronpedia.pair(*one)) for one in diagonals + large] == diagonals + large


@quick
@given(texts)
def test_names_of_files_hold_nothing_that_leads_elsewhere(text: str):
    name = file_name(text, otherwise="other")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or (name[0] in "_" and name != "..")
    assert not name.startswith(".") and len(name) <= 80


@quick
@given(one=shared(), form=st.sampled_from([graphml, gexf]))
def test_xml_formats_are_read_back_whole(one: Shared, form):
    text = form.text(one)
    back = form.read(text.encode(), name="file")
    assert back.graph == one.graph
    assert (labels(back), back.groups, back.pinned) == (labels(one), one.groups, one.pinned)
    ElementTree.fromstring(text)


@all_graphs
@pytest.mark.parametrize("form", ["graphml", "gexf"])
def test_networkx_reads_the_numbers_with_their_types(graph: CircuitGraph, form: str, tmp_path: Path):
    path = tmp_path / f"circuit.{form}"
    circuitcli.write_graph(graph, path)
    read = {"graphml": networkx.read_graphml, "gexf": networkx.read_gexf}[form](path)
    wanted = sorted_graph(graph).to_networkx()
    assert list(read.nodes) == list(wanted.nodes) and set(read.edges) == set(wanted.edges)
    for name, facts in wanted.nodes.items():
        assert {key: value for key, value in read.nodes[name].items() if key not in ("label", "token")} == {
            key: str(value) if key == "position" and "spans" in graph.head.positions else value
            for key, value in facts.items()
            if key != "token"
        }
    for ends, facts in wanted.edges.items():
        assert {key: read.edges[ends][key] for key in facts} == facts
    again = tmp_path / "again.graphml"
    networkx.write_graphml(read, again)


@all_graphs
def test_tables_are_those_of_pandas(graph: CircuitGraph, tmp_path: Path):
    circuitcli.write_graph(graph, tmp_path / "circuit.csv")
    for name, wanted in zip(("circuit-nodes.csv", "circuit.csv"), sorted_graph(graph).to_pandas(), strict=True):
        types = {column: str(kind) for column, kind in wanted.dtypes.items()}
        read = pandas.read_csv(tmp_path / name, dtype=types, keep_default_na=False, na_values=[""])
        pandas.testing.assert_frame_equal(read[list(types)], wanted, check_exact=True)


@quick
@given(st.lists(st.fixed_dictionaries({"id": texts, "label": texts, "effect": numbers}), max_size=5))
def test_tables_hold_any_text(rows: list[dict]):
    text = csv_tables.table(["id", "label", "effect", "none"], rows)
    read = [*csv.DictReader(io.StringIO(text, newline=""))]
    assert [(one["id"], one["label"], float(one["effect"]), one["none"]) for one in read] == [
        (one["id"], one["label"], one["effect"], "") for one in rows
    ]


@quick
@given(one=shared())
def test_no_text_breaks_out_of_a_mermaid_label(one: Shared):
    cards = {name: Details.model_validate({"id": name, **content}) for name, content in one.features.items()}
    node = re.compile(r'  n[0-9]+(\[|\(\[|\{\{)"[^"`\n\[\]{}<>&;]*((<br>|#[0-9]+;)[^"`\n\[\]{}<>&;]*)*"(\]|\]\)|\}\})')
    edge = re.compile(r'  n[0-9]+ -\.?-?>\|"[^"\n|]*"\| n[0-9]+')
    first, *lines = mermaid(draw(one.graph, details=cards)).splitlines()
    assert first == "flowchart BT" and len(lines) == len(one.graph.nodes) + len(one.graph.edges)
    assert all(node.fullmatch(line) or edge.fullmatch(line) for line in lines), lines


def large(n_edges: int = 2_500) -> CircuitGraph:
    n = 50
    nodes = [Node(f"resid.{layer}/{index}@1", 1.0, 0.5, "nats") for layer in (0, 1) for index in range(n)]
    edges = [
        Edge(f"resid.0/{number % n}@1", f"resid.1/{number // n}@1", 1.0 + number, "nats") for number in range(n_edges)
    ]
    return CircuitGraph(head(tokens=("a", "b")), (*nodes, Node("output")), tuple(edges))


def test_a_large_graph_is_cut_in_mermaid_and_says_so_and_is_whole_elsewhere(tmp_path: Path):
    graph = large()
    text = mermaid(draw(graph, max_edges=100_000))
    assert len(text) <= MOST_CHARACTERS and text.count("-->") <= 500
    assert re.search(r'more\["left out: 2,[0-9]{3} weaker edges( and [0-9]+ nodes?)?"\]', text)
    path = written(Shared(graph), tmp_path)
    assert formats.read(path).graph.edges == graph.edges


# The command.


def test_the_command_writes_and_reads_every_format(tmp_path: Path):
    (tmp_path / "circuit.jsonl").write_text("".join(to_line(record) + "\n" for record in to_records(small())))
    outputs = ["c.graphml", "c.gexf", "c.csv", "c.mmd", "c.json", "c.dot"]
    done = here("render", "circuit.jsonl", *(f"-o{name}" for name in outputs), cwd=tmp_path)
    assert done.status == 0 and [one["path"] for one in done.records if one["kind"] == "figure"] == outputs
    assert here("render", "circuit.jsonl", "--as", "neuronpedia", "-o", "np/c.json", cwd=tmp_path).status == 0
    for name in ("c.graphml", "c.gexf", "np/c.json"):
        done = here("render", name, "--as", "mermaid", "-o", "-", cwd=tmp_path)
        assert done.status == 0 and done.stdout == (tmp_path / "c.mmd").read_text(), (name, done.stderr)
        assert circuitcli.read_graph(tmp_path / name) == sorted_graph(small())
    shown = here("render", "np/c.json", "-o", "page.html", "-o", "c2.graphml", cwd=tmp_path)
    assert shown.status == 0 and (tmp_path / "c2.graphml").read_text() == (tmp_path / "c.graphml").read_text()


def test_groups_and_what_is_pinned_go_into_the_file_and_back_onto_the_page(tmp_path: Path):
    (tmp_path / "circuit.jsonl").write_text("".join(to_line(record) + "\n" for record in to_records(small())))
    members = ["resid.0/7@2", "attn.1/7@2"]
    state = {"format": 1, "pinned": "mlp.1/7@2", "groups": [{"name": "<b>", "members": members}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    there = ["--as", "neuronpedia", "-o"]
    assert here("render", "circuit.jsonl", "--state", "state.json", *there, "a/c.json", cwd=tmp_path).status == 0
    assert here("render", "a/c.json", *there, "b/c.json", "-o", "b/c.json", cwd=tmp_path).status == 0
    for name in ("a/c.json", "b/c.json"):
        content = json.loads((tmp_path / name).read_text())
        ids = {node["circuit"]["id"]: node["node_id"] for node in content["nodes"]}
        assert content["qParams"]["supernodes"] == [["<b>", *(ids[member] for member in members)]]
        assert content["qParams"]["pinnedIds"] == [ids["mlp.1/7@2"]]
        assert "groups" not in content["metadata"]["circuit"]["head"]
    assert here("render", "a/c.json", "-o", "c.html", "-o", "c.dot", "-o", "c.mmd", cwd=tmp_path).status == 0
    assert '"members":' in (tmp_path / "c.html").read_text() and "&lt;b&gt;" in (tmp_path / "c.dot").read_text()


def test_inspect_tells_whose_graph_a_file_is(tmp_path: Path):
    circuitcli.write_graph(transcoded(), tmp_path / "c.graphml")
    done = here("inspect", "c.graphml", "--json", cwd=tmp_path)
    (record,) = done.records
    assert (record["kind"], record["name"], record["n_nodes"], record["n_edges"]) == ("graph", "circuit", 7, 5)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--as", "eap", "-o", "x.json"], 3, "between features"),
        (["--as", "csv", "-o", "-"], 2, "several files"),
        (["--as", "png", "-o", "-"], 2, "not text"),
        (["--as", "graphviz", "-o", "x"], 2, "render.form"),
        (["-o", "x.xyz"], 2, "cannot draw 'x.xyz'"),
        (["--as", "gexf", "-o", "circuit.jsonl/x"], 3, "cannot write"),
    ],
)
def test_what_cannot_be_written_is_one_error_and_a_hint(words: list[str], status: int, message: str, tmp_path: Path):
    (tmp_path / "circuit.jsonl").write_text("".join(to_line(record) + "\n" for record in to_records(small())))
    done = here("render", "circuit.jsonl", *words, cwd=tmp_path)
    assert done.status == status and len(done.errors) == 2 and message in done.errors[0], done.stderr


def test_python_names_take_and_give_what_the_command_does(tmp_path: Path):
    circuitcli.write_graph(small(), tmp_path / "c.gexf")
    assert circuitcli.read_graph(tmp_path / "c.gexf") == CircuitGraph.load(tmp_path / "c.gexf") == sorted_graph(small())
    with pytest.raises(SettingsError, match="as_='xml'"):
        circuitcli.write_graph(small(), tmp_path / "c", as_="xml")
    with pytest.raises(InputError, match="effect of output is nan"):
        broken = replace(small(), nodes=(Node("output", effect=float("nan")),), edges=())
        circuitcli.write_graph(broken, tmp_path / "c.graphml")
    assert RenderSettings().form is None


# Uploading.

UPLOAD = Path(__file__).parents[1] / "configs" / "neuronpedia.sh"


class Site(BaseHTTPRequestHandler):
    """A stand-in for Neuronpedia that checks what its own code checks."""

    kept: bytes = b""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["x-api-key"] != "secret":
            return self._answer({"message": "no key"}, 401)
        if self.path == "/api/graph/signed-put":
            good = body["filename"].endswith(".json") and 1024 <= body["contentLength"] <= 100 * 2**20
            url = f"http://127.0.0.1:{self.server.server_port}/bucket/{body['filename']}?signed={body['contentLength']}"
            return self._answer({"url": url, "putRequestId": "p1"}, 200 if good else 400)
        graph = json.loads(Site.kept)
        wrong = [*problems(parsed(graph, name="upload"), n_bytes=len(Site.kept))]
        slug = graph["metadata"]["slug"]
        self._answer({"url": f"/{graph['metadata']['scan']}/graph?slug={slug}", "wrong": wrong}, 400 if wrong else 200)

    def do_PUT(self) -> None:
        Site.kept = self.rfile.read(int(self.headers["Content-Length"]))
        good = len(Site.kept) == int(self.path.partition("signed=")[2])
        self._answer({}, 200 if good else 403)

    def _answer(self, content: dict, status: int) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the programs curl and jq are missing")
def test_a_graph_is_uploaded_by_curl(tmp_path: Path):
    circuitcli.write_graph(transcoded(), tmp_path / "c.json", as_="neuronpedia", scan="gpt2-small")
    server = HTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_port}"
    try:
        done, refused = (
            subprocess.run(
                [UPLOAD, "c.json"],
                cwd=tmp_path,
                env={**os.environ, "NEURONPEDIA": site, "NEURONPEDIA_API_KEY": key},
                capture_output=True,
                text=True,
                timeout=60,
            )
            for key in ("secret", "wrong")
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{site}/gpt2-small/graph?slug=c\n"
    assert refused.returncode != 0 and "401" in refused.stderr and refused.stdout == ""
    assert Site.kept == (tmp_path / "c.json").read_bytes()
