"""All stages on a real pretrained model, each in a process of its own; CIRCUIT_TEST_MODEL names the model's directory.

Any small Llama-like model with a BOS token does that knows the capital of France; CI takes SmolLM2-135M.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import nursery
import pytest
import torch

from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.records import read as read_records
from circuitcli.runs import Run
from circuitcli.settings.sources import load
from circuitcli.stages import graph_task, graphing
from circuitcli.stages.request import Request
from circuitcli.validation.circuits import circuit_metric, kept_nodes

MODEL = os.environ.get("CIRCUIT_TEST_MODEL")
PROMPT, TARGET = "The capital of France is", " Paris"
PAIRS = Path(__file__).parents[2] / "shared" / "data" / "subject-verb"
N_TOKENS, D_SAE, K = 2048, 768, 16
HOOKS = ["resid.14", "mlp.15", "resid.15"]
BEHAVIOUR = ["--prompt", PROMPT, "--target", TARGET]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not MODEL, reason="CIRCUIT_TEST_MODEL names no model directory (see .ci/run)"),
]


@dataclass(frozen=True)
class Pipeline:
    """The records of each command, by command, and the directory in which they ran."""

    folder: Path
    records: dict[str, list[dict]]

    def only(self, command: str, kind: str) -> list[dict]:
        """The records of one kind that a command printed, those that it passed on included."""
        return [record for record in self.records[command] if record["kind"] == kind]

    def of_last_graph(self, command: str, kind: str) -> list[dict]:
        """The nodes or edges of the graph that a command printed last."""
        records = self.records[command]
        head = max(place for place, record in enumerate(records) if record["kind"] == "graph")
        return [record for record in records[head:] if record["kind"] == kind]

    @property
    def head(self) -> dict:
        """The head of the gradient graph."""
        return self.only("graph-grad", "graph")[-1]


def circuit(folder: Path, *words: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUIT_")}
    done = nursery.run(["-m", "circuitcli", *words], cwd=folder, env=environment, timeout=600)
    assert done.returncode == 0, f"circuit {' '.join(words)}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.split("\n") if line]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """collect, train, interp, both graphs, validate, render, one after the other in one directory."""
    folder = tmp_path_factory.mktemp("real")
    collect = ["--layers", "14:16", "--sites", "resid,mlp", "--text", "builtin:python", "--tokens", str(N_TOKENS)]
    train = ["--tokens", str(6 * N_TOKENS), "--set", "train.batch_size=512", "--set", "train.eval_tokens=128"]
    sae = ["--set", f"sae.d_sae={D_SAE}", "--set", f"sae.k={K}"]
    chosen = ["--set", "graph.baseline_tokens=1024"]
    commands = {
        "collect": ["collect", "--model", str(MODEL), *collect],
        "train": ["train", *sae, *train],
        "interp": ["interp"],
        "graph-grad": ["graph-grad", *BEHAVIOUR, *chosen, "--down", "3", "--up", "2"],
        "graph-naive": ["graph-naive", *BEHAVIOUR, "--thin", "0.01", "--threshold-exp", "-3"],
        "validate": ["validate", "--graph", "circuit", "--set", "validate.samples=3"],
        "render": ["render", "--graph", "circuit", "-o", "circuit.dot", "-o", "circuit.json"],
    }
    return Pipeline(folder, {name: circuit(folder, *words) for name, words in commands.items()})


def test_every_hook_point_is_collected_and_has_an_sae_that_learnt(pipeline: Pipeline) -> None:
    activations = pipeline.only("collect", "activations")
    assert {record["hook"] for record in activations} == {"resid.14", "mlp.14", "resid.15", "mlp.15"}
    # The last block is not cut.
    assert all(N_TOKENS <= record["n_tokens"] < N_TOKENS + 128 for record in activations)
    saes = pipeline.only("train", "sae")
    assert len(saes) == 4
    assert all(record["d_sae"] == D_SAE and record["l0"] <= K for record in saes)
    assert all(record["explained_variance"] > 0.2 for record in saes)


def described(pipeline: Pipeline) -> list[dict]:
    """The lines of all features files."""
    run = pipeline.folder / pipeline.only("interp", "run")[0]["path"]
    files = [run / record["path"] for record in pipeline.only("interp", "features")]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_features_are_described_by_text_that_they_fire_on(pipeline: Pipeline) -> None:
    features = described(pipeline)
    assert len(features) > 400
    assert all(record["label"] and 0 < record["density"] <= 1 for record in features)
    (shown,) = circuit(pipeline.folder, "interp", "--feature", features[0]["id"])
    peak = shown["contexts"][0]
    assert peak["activations"][peak["peak"]] == max(peak["activations"]) == shown["max"]
    assert shown["max"] >= shown["quantiles"]["0.99"] >= shown["quantiles"]["0.1"] > 0


def test_the_clean_metric_is_the_log_probability_of_the_plain_model(pipeline: Pipeline) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    (target,) = tokenizer(TARGET, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)[target]
    assert pipeline.head["metric_clean"] == pytest.approx(float(expected), abs=1e-4)
    assert pipeline.head["metric_baseline"] < pipeline.head["metric_clean"]


def test_effects_add_up_to_the_change_that_the_baseline_makes(pipeline: Pipeline) -> None:
    for sums in pipeline.head["effects"].values():
        total = sums["features"] + sums["errors"]
        assert math.isfinite(total)
        assert abs(sums["gap"]) < 0.05 * max(1.0, abs(total))


def test_graphs_end_in_the_output_and_their_nodes_are_known(pipeline: Pipeline) -> None:
    known = {line["id"] for line in described(pipeline)}
    ids = {record["id"] for record in pipeline.only("graph-grad", "node")}
    assert "output" in ids and len(ids) > 5
    edges = pipeline.only("graph-grad", "edge")
    assert edges and all({edge["source"], edge["target"]} <= ids for edge in edges)
    assert any(node.partition("@")[0] in known for node in ids)
    naive = pipeline.of_last_graph("graph-naive", "edge")
    assert naive and all(abs(edge["weight"]) > 2**-3 for edge in naive)


def test_scores_say_what_the_circuit_explains(pipeline: Pipeline) -> None:
    scores = {record["name"]: record["value"] for record in pipeline.only("validate", "score")}
    assert {"faithfulness", "completeness"} <= set(scores)
    assert all(math.isfinite(value) for value in scores.values())


def test_pictures_show_the_nodes_of_the_graph(pipeline: Pipeline) -> None:
    dot = (pipeline.folder / "circuit.dot").read_text(encoding="utf-8")
    assert "digraph" in dot
    assert all(node["id"] in dot for node in pipeline.only("graph-grad", "node"))
    page = json.loads((pipeline.folder / "circuit.json").read_text(encoding="utf-8"))
    assert {node["id"] for node in page["nodes"]} == {node["id"] for node in pipeline.only("graph-grad", "node")}
    assert len(page["edges"]) == len(pipeline.only("graph-grad", "edge"))


def test_with_every_feature_and_error_kept_the_model_is_itself(pipeline: Pipeline) -> None:
    run = Run(pipeline.folder / pipeline.only("collect", "run")[0]["path"])
    made = [json.dumps(record) for name in ("collect", "train") for record in pipeline.records[name]]
    flags = {"model.name": MODEL, "graph.prompt": PROMPT, "graph.target": TARGET, "graph.baseline": "zero"}
    settings = load(flags, environment={}, directory=pipeline.folder).settings
    request = Request(settings, Stream(read_records(made)), run)
    task = graph_task.task_of(request, "graph-grad", name="all", positions="all", baseline="zero", foreign=())
    prepared = graphing.prepare(task)
    assert set(map(HookPoint.parse, HOOKS)) <= set(prepared.panel.hooks)
    subject, baseline = prepared.panel.subject(0)
    nothing = kept_nodes(subject, ())
    full, empty = circuit_metric(subject, baseline, [nothing.complement(), nothing], batch_size=2)[:, 0]
    clean = float(subject.metric_clean)
    assert clean == pytest.approx(pipeline.head["metric_clean"], abs=1e-4)
    assert float((full - empty) / (clean - empty)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.skipif(not PAIRS.is_dir(), reason="the subject-verb pairs are not beside the checkout")
def test_agreement_is_explained_over_pairs_and_tested_on_others(pipeline: Pipeline) -> None:
    pairs = ["--metric", "logit-diff", "--baseline", "counterfactual", "--skip-bad"]
    train, test = (["--prompts", str(PAIRS / f"nounpp_{part}.json"), "--n-prompts", "4"] for part in ("train", "test"))
    sizes = ["--down", "3", "--up", "2", "--method", "atp", "--name", "agreement"]
    made = circuit(pipeline.folder, "graph-grad", *train, *pairs, *sizes)
    head = [record for record in made if record["kind"] == "graph"][-1]
    nodes = made[made.index(head) :]
    effects = [record for record in nodes if record["kind"] == "node" and record["id"] != "output"]
    assert head["n_prompts"] == 4 and head["metric"] == "logit-diff" and len(effects) > 4
    assert all(record["standard_error"] >= 0 for record in effects)
    few = ["--set", "validate.samples=2", "--set", "validate.minimality=false"]
    scores = circuit(
        pipeline.folder, "validate", "--graph", "agreement", *test, "--skip-bad", "--basis", "neurons", *few
    )
    told = [score for score in scores if score["kind"] == "score" and score["graph"] == "agreement"]
    names = {"faithfulness", "completeness", "effect", "faithfulness-edges", "faithfulness-neurons"}
    assert names <= {score["name"] for score in told}
    assert all(math.isfinite(score["value"]) and score["n_prompts"] == 4 for score in told)


def test_the_same_commands_again_answer_at_once(pipeline: Pipeline) -> None:
    before = {path: path.stat().st_mtime_ns for path in pipeline.folder.rglob("*.safetensors")}
    assert circuit(pipeline.folder, "interp")[-1] == pipeline.records["interp"][-1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
