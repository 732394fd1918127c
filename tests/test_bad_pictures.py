"""What cannot be drawn, or only in part: one error, one hint and the right status, or words on what is hidden."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from bench.page_graphs import random_circuit
from cli_support import Outcome, here
from test_render import feature, head, needs_dot, small_graph, write_features

from circuitcli.graphs import CircuitGraph, Node, to_records
from circuitcli.render import picture
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import draw
from circuitcli.render.page import embedded
from circuitcli.render.text import visible
from circuitcli.settings.render import RenderSettings

FORMS = ("dot", "svg", "png", "pdf", "json", "html")
SHAPES = {
    "nothing": (),
    "only the output": (Node("output"),),
    "one feature": (Node("resid.0/1@0", 1.0, 0.5, "nats"),),
    "a feature without numbers": (Node("resid.0/1"), Node("output")),
    "no edges": tuple(Node(f"resid.{layer}/1@2", 1.0, 0.5, "nats") for layer in range(3)),
}


def write_graph(graph: CircuitGraph, path: Path) -> str:
    """The graph as a file of records; its name."""
    lines = (record.model_dump_json(exclude_none=True) + "\n" for record in to_records(graph))
    path.write_text("".join(lines), encoding="utf-8")
    return path.name


def render(cwd: Path, *words: str, graph: CircuitGraph | None = None) -> Outcome:
    """What `circuit render` leaves of a graph."""
    drawn = small_graph() if graph is None else graph
    return here("render", write_graph(drawn, cwd / "graph.jsonl"), *words, cwd=cwd)


def refused(outcome: Outcome, status: int, *, error: str, hint: str) -> None:
    """Hold that a command ended with one error and one hint, which match."""
    assert outcome.status == status, outcome.stderr
    first, second = outcome.errors
    assert re.search(error, first) and first.startswith("error: ")
    assert re.search(hint, second) and second.startswith("hint: ")
    assert "Traceback" not in outcome.stderr


@needs_dot
@pytest.mark.parametrize("shape", SHAPES)
def test_graphs_of_next_to_nothing_are_drawn_in_every_form(inside: Path, shape: str):
    graph = CircuitGraph(head(tokens=(), target=None, saes={}), SHAPES[shape])
    names = [f"x.{form}" for form in FORMS]
    done = render(inside, *(word for name in names for word in ("-o", name)), graph=graph)
    assert done.status == 0, done.stderr
    assert all((inside / name).stat().st_size > 100 for name in names)
    drawn = embedded((inside / "x.html").read_text(encoding="utf-8"))["document"]
    assert [node["id"] for node in drawn["nodes"]] == [node.id for node in graph.nodes]
    assert all(node.id in (inside / "x.dot").read_text(encoding="utf-8") for node in graph.nodes)


@pytest.mark.parametrize("name", ["x.gif", "x", "x.", "x.html.gz", ".svg"])
def test_a_form_that_nothing_draws_is_refused_before_anything_is_written(inside: Path, name: str):
    done = render(inside, "-o", "first.html", "-o", name)
    refused(done, 2, error=f"'{re.escape(name)}'", hint=r"\.svg .*\.html")
    assert not (inside / "first.html").exists()
    refused(render(inside, "-o", "first.html", "-o", ""), 2, error="--output is empty", hint="give a value")
    assert not (inside / "first.html").exists()


# Root may write into any folder, but not where a file is in the way or where the system makes the files.
@pytest.mark.parametrize("name", ["file/x.html", "file/deep/x.json", "folder.html", "/proc/x.dot", "y" * 300 + ".html"])
def test_where_nothing_can_be_written_is_said_with_the_option_that_chooses_another_place(inside: Path, name: str):
    (inside / "file").write_text("kept")
    (inside / "folder.html").mkdir()
    refused(render(inside, "-o", name), 3, error="cannot write", hint="render: --output")
    assert (inside / "file").read_text() == "kept" and (inside / "folder.html").is_dir()
    assert not list(inside.rglob("*.partial"))


def test_missing_folders_are_made(inside: Path):
    assert render(inside, "-o", "not/there/yet/x.html").status == 0
    assert (inside / "not/there/yet/x.html").is_file()


FAKES = {
    "crashes": ("echo 'Segmentation fault' >&2; exit 139", "Segmentation fault"),
    "is killed": ("kill -SEGV $$", "'dot' failed"),
    "draws nothing": ("cat >/dev/null; exit 0", "'dot' failed"),
    "never ends": ("exec sleep 30", "stopped after 0.3 s"),
    "never ends, and has children": ("trap '' TERM; sleep 30; true", "stopped after 0.3 s"),
    "complains in noise": ("head -c 100000 /dev/urandom >&2; exit 1", "'dot' failed"),
}


@pytest.mark.parametrize("does", FAKES)
def test_a_dot_that_fails_leaves_its_source_and_says_what_to_do(
    inside: Path, does: str, monkeypatch: pytest.MonkeyPatch
):
    program, told = FAKES[does]
    fake = inside / "bin" / "dot"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(picture, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(picture, "SECONDS_A_LINE", 0.0)
    begun = time.monotonic()
    done = render(inside, "-o", "x.svg", "-o", "y.html")
    assert time.monotonic() - begun < 15
    refused(done, 4, error=told, hint="draw")
    assert {path.name for path in inside.glob("[xy].*")} == {"x.dot", "y.html"}
    assert len(done.stderr) < 2000
    assert ("--max-nodes" in done.errors[1]) == ("stopped" in told)


def test_dot_is_given_more_time_for_larger_pictures_and_ten_minutes_at_most():
    limits = [picture.limit_s("digraph {\n" + "a -> b\n" * n + "}") for n in (0, 30, 1000, 10**5)]
    assert limits == sorted(set(limits)) and limits[0] < 31 and limits[2] > 120 and limits[-1] == 600


LONG = {
    "long": "x" * 10_000,
    "combining": "e" + "\u0301" * 10_000,
    "right to left": "שלום עולם " * 1000,
    "isolated": "\u2067" * 5000 + "a",
    "joined": "👩\u200d" * 3000,
    "no characters": "\ufffe\uffff\x00\x1b[31m\x7f\x85",
    "replaced": b"caf\xe9 \xff\xfe".decode(errors="replace"),
}


@needs_dot
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in LONG.items()])
def test_labels_of_any_text_are_drawn_and_kept_whole_in_the_numbers(inside: Path, text: str):
    run = inside / "run"
    run.mkdir()
    tokens = [text[:40], text[40:80], "a"]
    contexts = [{"tokens": tokens, "activations": [0.0, 2.0, 4.0], "peak": 2}]
    write_features(run, feature(label=text, contexts=contexts, promoted=[[text, 1.5]]))
    (run / "run.json").write_text(json.dumps({"format": 1, "stages": {}}), encoding="utf-8")
    done = render(inside, "--run", str(run), "-o", "x.svg", "-o", "x.html", "-o", "x.json")
    assert done.status == 0, done.stderr
    svg = (inside / "x.svg").read_text(encoding="utf-8")
    assert visible(text)[:1].replace(" ", "\u00a0") in svg and len(svg) < 200_000
    page = embedded((inside / "x.html").read_text(encoding="utf-8"))["document"]
    document = json.loads((inside / "x.json").read_text(encoding="utf-8"))
    for content in (page, document):
        known = [node["details"] for node in content["nodes"] if node["details"]]
        assert known and all(one["label"] == text and one["contexts"][0]["tokens"] == tokens for one in known)


BROKEN = {
    "half a surrogate pair": rb"\ud800",
    "bytes that are no character": b"\xff\xfe",
    "a character cut in two": "é".encode()[:1],
    "a control character": b"\x01",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("where", ["graph", "features"])
def test_text_that_is_not_text_is_refused_by_its_place(inside: Path, where: str, broken: str):
    run = inside / "run"
    run.mkdir()
    write_features(run, feature(label="MARK"))
    path = inside / write_graph(small_graph(prompt="MARK"), inside / "graph.jsonl")
    damaged = path if where == "graph" else run / "features" / "resid.0.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"MARK", BROKEN[broken]))
    done = here("render", "graph.jsonl", "--run", str(run), "-o", "x.html", cwd=inside)
    refused(done, 3, error=f"{damaged.name} line 1", hint=".")
    assert not (inside / "x.html").exists()


def test_of_fifty_thousand_edges_the_strongest_are_drawn_and_the_rest_counted():
    graph = random_circuit(400, 50_000)
    drawing = draw(graph)
    text = dot_source(drawing, RenderSettings()).replace("&#160;", " ")
    assert len(graph.edges) == 50_000
    assert text.count('tooltip="resid') >= 300 and len(drawing.edges) == 300
    assert "the weakest 49700 of 50000 edges" in text
    assert f"{drawing.n_hidden_nodes} nodes that have no edge" in text and drawing.n_hidden_nodes > 0
    sizes = sorted(abs(edge.weight) for edge in graph.edges)
    assert sorted(abs(edge.weight) for edge in drawing.edges) == sizes[-300:]
    assert drawing.left_out[0].share == pytest.approx(1 - sum(sizes[-300:]) / sum(sizes))
