"""`circuit inspect` without a path: every thing that a run holds, once, without torch or single lines."""

import json
import sys
from pathlib import Path

import pytest

from circuitcli import records
from circuitcli.cli import listing_view
from circuitcli.cli.app import run as command
from circuitcli.cli.console import console
from circuitcli.records import (
    ActivationsRecord,
    EdgeRecord,
    FeatureRecord,
    FeaturesRecord,
    GraphRecord,
    NodeRecord,
    Record,
    SaeRecord,
    ScoreRecord,
    SweepRecord,
)
from circuitcli.runs import Fingerprint, Run
from circuitcli.stages.listing import listing

SAE = dict(architecture="topk", d_in=8, d_sae=64, digest="sha256:s", k=4, l0=4.0, explained_variance=0.75, dead=0.25)


def head(name: str) -> GraphRecord:
    numbers = dict(metric_clean=-1.0, metric_baseline=-9.0, dtype="float32", unit="nats")
    words = dict(method="grad-ig", metric="log-prob", baseline="mean", positions="all", model="m", target=" Paris")
    return GraphRecord(name=name, prompt="The capital of France is " * 4, tokens=("a",), **numbers, **words)


def graph(name: str, n: int) -> list[Record]:
    nodes = [NodeRecord(id=f"resid.1/{index}", effect=1.0, unit="nats") for index in range(n)]
    edges = [EdgeRecord(source=node.id, target="output", weight=1.0, unit="nats") for node in nodes]
    return [head(name), NodeRecord(id="output"), *nodes, *edges]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which each stage has worked, one was replaced, and one is not finished."""
    made = Run(tmp_path / "run")
    made.update_manifest(model="gpt2", layers="1:2")
    place = dict(path="activations/resid.1", n_tokens=1_000_000, d_model=8, dtype="float16", digest="sha256:a")
    features = FeaturesRecord(hook="resid.1", n_live=60, n_dead=4, path="features/resid.1.jsonl", digest="sha256:f")
    stages: dict[str, list[Record]] = {
        "collect": [ActivationsRecord(hook="resid.1", **place)],
        "train": [SaeRecord(hook="resid.1", path="saes/resid.1", problems=("90% of the features are dead",), **SAE)],
        "sweep": [
            SweepRecord(hook="resid.1", path=f"saes/sweep/k={k}/resid.1", variant=f"k={k}", **SAE) for k in (2, 4)
        ],
        "interp": [features],
        "graph:circuit": graph("circuit", 3),
        "graph:other": graph("other", 2),
        "validate:circuit": [ScoreRecord(name="faithfulness", value=0.83, low=0.79, high=0.86, graph="circuit")],
    }
    for name, emitted in stages.items():
        made.begin(name, Fingerprint({}, {}))
        made.finish(name, emitted, seconds=1.0)
    made.begin("train", Fingerprint({"k": 5}, {}), force=True, keeps=True)
    for name in ("figures/circuit.svg", "reports/circuit.json"):
        (made.path / name).parent.mkdir()
        (made.path / name).touch()
    return made


def test_each_thing_is_told_once_and_single_lines_are_not(run: Run) -> None:
    made = listing(run)
    kinds = [record.kind for record in made if record.kind != "stage"]
    held = ["activations", "sae", "sweep", "sweep", "features", "score", "graph", "graph", "report", "figure"]
    assert kinds == ["run", *held]
    assert [(record.name, record.n_nodes, record.n_edges) for record in made if record.kind == "graph"] == [
        ("circuit", 3, 3),
        ("other", 2, 2),
    ]
    states = [(record.name, record.state) for record in made if record.kind == "stage"]
    assert states.count(("train", "finished")) == states.count(("train", "running")) == 1
    assert list(records.read(map(records.to_line, made))) == made


def test_features_that_an_older_version_told_one_by_one_are_counted(run: Run) -> None:
    old = [FeatureRecord(id=f"resid.1/{n}", label="x", density=0.5, path="features/resid.1.jsonl") for n in range(50)]
    run.finish("interp", old, seconds=0.0)
    (found,) = [record for record in listing(run) if record.kind == "features"]
    assert (found.hook, found.n_live, found.n_dead) == ("resid.1", 50, 14)


def test_people_see_names_settings_and_scores(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rows = listing_view.table(listing(run)).rows
    assert ("SAE", "resid.1", "topk k=4, 64 features", "0.750 explained, L0 4, 25% dead") in rows
    assert ("", "", "", "! 90% of the features are dead") in rows
    assert ("score", "faithfulness", "of circuit", "0.83 (0.79 to 0.86)") in rows
    assert ("figure", "figures/circuit.svg", "", "") in rows and ("report", "reports/circuit.json", "", "") in rows
    assert [row[3] for row in rows if row[0] == "stage"] == ["running"]
    monkeypatch.setattr(type(console), "prints_records", False)
    assert command(["inspect", "--run", str(run.path)]) == 0
    printed = capsys.readouterr()
    assert "resid.1" in printed.out and "gpt2" in printed.out and f"circuit inspect {run.path}" in printed.err


def test_what_coders_write_and_how_many_prompts_a_graph_explains_is_listed() -> None:
    many = head("many").model_copy(update={"n_prompts": 24, "prompts": "pairs.jsonl", "target": None})
    layer = SaeRecord(
        **{"hook": "mlp_in.1", "target": "mlp.1", "further": ("mlp.2",), "architecture": "topk", "d_in": 3, "d_sae": 9},
        **{"path": "saes/mlp_in.1", "digest": "sha256:0"},
    )
    graph, coder = listing_view.table([many, layer]).rows
    assert graph[2].endswith("of their targets after 24 prompts of pairs.jsonl, the first: Th…")
    assert coder[1] == "mlp_in.1 → mlp.1 mlp.2"


def test_the_command_prints_records_and_needs_no_torch(run: Run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command(["inspect", "--run", str(run.path)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        json.loads(records.to_line(record)) for record in listing(run)
    ]


@pytest.mark.parametrize("words", [["--tokens", "100"], ["--text", "x.txt"], ["--model", "gpt2"], ["--device", "cpu"]])
def test_options_for_looking_at_saes_need_one(run: Run, words: list[str], capsys) -> None:
    assert command(["inspect", "--run", str(run.path), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]} is for looking at SAEs")
