"""The graph and validation stages on the built-in model, over a small run that all tests of this file share."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from subjects import check_traces

import circuitcli
from circuitcli import graphs, records
from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution import subject as subjects
from circuitcli.attribution.frozen.estimate import held_bytes
from circuitcli.attribution.prompts import encode_prompt
from circuitcli.cli.summaries import tables
from circuitcli.errors import InputError, SettingsError, ThresholdError
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.loading import load_model
from circuitcli.progress import NOTE
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord, PairRecord, ScoreRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.coders import Coders
from circuitcli.saes.relu import ReluSae
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import load
from circuitcli.stages import collect, export, graph_frozen, graph_grad, graph_naive, render, train, validate
from circuitcli.stages.graphing import baseline_rule
from circuitcli.stages.inputs import read_graphs
from circuitcli.stages.render import scores_of
from circuitcli.stages.request import Request
from circuitcli.stages.saes import load_saes, sae_sources
from circuitcli.validation import circuits

PROMPT = "import os\nimport sys\n\ndef main(self):\n    self."
LOGIT_DIFF = {"graph__metric": "logit-diff", "graph__foil": "ma"}
SMALL = {
    "model.device": "cpu",
    "data.layers": "1:3",
    "data.sites": "resid,mlp",
    "data.tokens": 3000,
    "data.block_length": 64,
    "sae.k": 6,
    "sae.d_sae": 150,
    "train.batch_size": 256,
    "train.eval_tokens": 512,
    "graph.prompt": PROMPT,
    "graph.ig_steps": 3,
    "graph.down": 3,
    "graph.up": 2,
    "graph.baseline_tokens": 512,
    "validate.samples": 3,
}


def settings(**changes) -> Settings:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load(SMALL | named, environment={}, directory=Path("/nonexistent")).settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    run = Run(path)
    collect.run(Request(settings(), Stream(), run))
    train.run(Request(settings(), run.stream(), run))
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of the run, to be worked on."""
    shutil.copytree(trained, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def ask(run: Run) -> Callable[..., Request]:
    def request(force: bool = False, **changes) -> Request:
        return Request(settings(**changes), run.stream(), run, force)

    return request


def graph_of(made) -> graphs.CircuitGraph:
    return graphs.from_records(Stream(made))[-1]


def test_a_gradient_graph_has_its_numbers_its_file_and_its_place_in_the_run(ask, run):
    made = graph_grad.run(ask())
    graph = graph_of(made)
    assert [type(record) for record in made[:2]] == [GraphRecord, NodeRecord]
    assert graph.head.tokens[0] == "<|endoftext|>" and "".join(graph.head.tokens[1:]) == PROMPT
    assert set(graph.head.saes) == {"resid.1", "mlp.1", "resid.2", "mlp.2"}
    assert len(graph.edges) > 3 and OUTPUT in graph.by_id
    assert all(node.effect is not None and node.unit == "nats" for node in graph.nodes if not node.is_output)
    assert not any(node.place.position == 0 for node in graph.nodes if node.place), "BOS carries no nodes"
    check_traces(graph)
    stored = (run.path / "graphs" / "circuit.jsonl").read_text(encoding="utf-8").splitlines()
    assert stored == [records.to_line(record) for record in made]


def test_the_clean_metric_is_the_plain_models_log_probability_of_its_most_likely_token(ask):
    request = ask()
    head = graph_of(graph_grad.run(request)).head
    model = load_model(request.settings.model)
    ids = model.tokenizer.with_bos(model.tokenizer.encode(PROMPT))
    logs = model.adapter.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
    assert head.metric_clean == pytest.approx(float(logs.max()), abs=1e-5)
    assert head.target == model.tokenizer.token_strings([int(logs.argmax())])[0]
    assert head.metric_baseline < head.metric_clean
    likeliest = sorted(enumerate(logs.exp().tolist()), key=lambda pair: -pair[1])[:10]
    assert [token for token, _ in head.next_tokens] == model.tokenizer.token_strings(id for id, _ in likeliest)
    assert [share for _, share in head.next_tokens] == pytest.approx([share for _, share in likeliest], abs=1e-6)


def test_effects_of_a_hook_point_and_its_gap_are_told(ask):
    head = graph_of(graph_grad.run(ask(graph__ig_steps=30))).head
    for sums in head.effects.values():
        assert abs(sums["gap"]) < 0.05 * (abs(sums["features"]) + abs(sums["errors"]) + 1)


def test_a_finished_graph_is_emitted_again_without_torch(run):
    arguments = [f"--set={name}={value}" for name, value in SMALL.items() if name not in ("graph.prompt",)]
    command = [sys.executable, "-X", "importtime", "-m", "circuitcli", "graph-grad", "--run", str(run.path)]
    command += [*arguments, "--prompt", PROMPT]
    first = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    again = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    assert first.stdout == again.stdout
    assert "| torch\n" in first.stderr.replace(" ", "").replace("|torch\n", "| torch\n")
    assert not any(line.split("|")[-1].strip() == "torch" for line in again.stderr.splitlines())


def test_another_prompt_under_the_same_name_is_refused_and_force_replaces_it(ask):
    graph_grad.run(ask(graph__name="circuit"))
    with pytest.raises(InputError, match=r"graph\.prompt was .* and is now 'x = '") as caught:
        graph_grad.run(ask(graph__prompt="x = ", graph__name="circuit"))
    assert "--force" in caught.value.hint and "--name" in caught.value.hint
    assert graph_of(graph_grad.run(ask(force=True, graph__prompt="x = "))).head.prompt == "x = "
    assert graph_of(graph_grad.run(ask(graph__prompt="y = ", graph__name="other"))).head.name == "other"


def test_graphs_without_a_name_take_one_that_is_free_or_was_made_from_the_same_settings(ask, run, caplog):
    caplog.set_level(NOTE, logger="circuitcli")
    cheap = {"graph__method": "atp", "graph__positions": "sum"}
    prompts = ("x = ", "y = ", "x = ", "y = ", "z = ")
    names = [graph_of(graph_grad.run(ask(graph__prompt=prompt, **cheap))).head.name for prompt in prompts]
    assert names == ["circuit", "circuit-2", "circuit", "circuit-2", "circuit-3"]
    said = [record.message for record in caplog.records if record.levelno == NOTE]
    assert len(said) == 3 and all(name in text for name, text in zip(("-2", "-2", "-3"), said, strict=True))
    assert "graph.prompt was 'x = ' and is now 'y = '" in said[0]
    assert graphs.from_records(run.stream())[-1].head.name == "circuit-3", "later stages take the graph made last"
    assert read_graphs(run.path / "graphs" / "circuit-2.jsonl")[-1].head.prompt == "y = "
    replaced = graph_of(graph_grad.run(ask(force=True, graph__prompt="v = ", **cheap))).head
    assert (replaced.name, graph_of(graph_grad.run(ask(graph__prompt="v = ", **cheap))).head.name) == ("circuit",) * 2


def test_an_unfinished_graph_without_a_name_goes_on_under_its_own(ask, run, monkeypatch):
    graph_naive.run(ask(graph__prompt="x = ", graph__thin=0.01))
    monkeypatch.setattr("circuitcli.attribution.naive.NaiveSearch.graph", lambda *given: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            graph_naive.run(ask(graph__prompt="y = ", graph__thin=0.01))
    assert [name for name in run.manifest()["stages"] if "naive" in name] == ["graph:naive", "graph:naive-2"]


def test_a_file_that_the_run_did_not_make_is_not_overwritten(ask, run):
    cheap = {"graph__method": "atp", "graph__positions": "sum"}
    foreign = run.path / "graphs" / "circuit.jsonl"
    foreign.parent.mkdir()
    foreign.write_text("mine", encoding="utf-8")
    assert graph_of(graph_grad.run(ask(**cheap))).head.name == "circuit-2"
    with pytest.raises(InputError, match="exists"):
        graph_grad.run(ask(graph__name="circuit", **cheap))
    assert foreign.read_text(encoding="utf-8") == "mine"
    assert graph_of(graph_grad.run(ask(force=True, graph__name="circuit", **cheap))).head.name == "circuit"


def test_attribution_patching_and_integration_find_graphs_of_the_same_form(ask):
    patched = graph_of(graph_grad.run(ask(graph__method="atp", graph__name="a")))
    integrated = graph_of(graph_grad.run(ask(graph__name="b")))
    assert (patched.head.method, integrated.head.method) == ("grad-atp", "grad-ig")
    assert all(sums["steps"] == 1 and "gap" in sums for sums in patched.head.effects.values())


@pytest.mark.parametrize("method", ["relp", "gim"])
def test_graphs_by_a_rule_say_so_and_have_other_effects_of_the_same_activations(ask, method):
    plain = graph_of(graph_grad.run(ask(graph__method="atp", graph__name="a")))
    ruled = graph_of(graph_grad.run(ask(graph__method=method, graph__name="c")))
    assert ruled.head.method == f"grad-{method}"
    pairs = [(ours, by_id) for ours in ruled.nodes if (by_id := {node.id: node for node in plain.nodes}.get(ours.id))]
    assert all(ours.activation == theirs.activation for ours, theirs in pairs)
    assert any(ours.effect != theirs.effect for ours, theirs in pairs)


@pytest.mark.parametrize("metric", ["logit-diff", "cross-entropy", "kl"])
def test_every_metric_can_be_explained(ask, metric):
    foil = {"graph__foil": "("} if metric == "logit-diff" else {}
    graph = graph_of(graph_grad.run(ask(graph__metric=metric, **foil)))
    assert graph.head.metric == metric and len(graph.nodes) > 1
    assert graph.head.unit == ("logits" if metric == "logit-diff" else "nats")


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample", "counterfactual"])
def test_every_baseline_is_written_down_and_used(ask, baseline):
    prompt = {"graph__prompt": "a = 1\nb =", "graph__counterfactual": "a = 2\nc ="}
    graph = graph_of(graph_naive.run(ask(graph__baseline=baseline, graph__threshold_exp=-9, **prompt)))
    assert graph.head.baseline == baseline and graph.edges


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graph__counterfactual": "x"}, "the baseline mean uses no counterfactual prompt"),
        ({"graph__ig_steps": 7, "graph__method": "atp"}, "attribution patching takes one step"),
    ],
)
def test_settings_that_change_nothing_beside_others_are_said(ask, caplog, changes, said):
    graph_grad.run(ask(**{"graph__method": "atp", "graph__positions": "sum", **changes}))
    assert said in caplog.text


def test_a_counterfactual_of_another_length_is_refused(ask):
    with pytest.raises(InputError, match="the counterfactual has"):
        graph_grad.run(ask(graph__baseline="counterfactual", graph__counterfactual="x"))
    with pytest.raises(InputError, match="needs another prompt"):
        graph_grad.run(ask(graph__baseline="counterfactual", graph__name="n"))


def test_a_naive_graph_of_pins_shows_what_they_contribute(ask):
    everything = graph_of(graph_naive.run(ask(graph__threshold_exp=-20)))
    hook = HookPoint(1, "resid")
    source = next(
        NodeId.parse(e.source) for e in everything.edges if e.source.startswith("resid.1/") and "err" not in e.source
    )
    pin = f"1:{source.index}"
    pinned = graph_of(graph_naive.run(ask(graph__threshold_exp=-20, graph__pin=pin, graph__name="pinned")))
    check_traces(pinned)
    found = {(e.source, e.target): e.weight for e in pinned.edges if NodeId.parse(e.source).hook == hook}
    whole = {(e.source, e.target): e.weight for e in everything.edges if e.source == str(source)}
    assert found == pytest.approx(whole, abs=1e-4) and found


def test_a_graph_grows_with_extend(ask, run):
    both = graph_of(graph_naive.run(ask(graph__threshold_exp=-6, graph__name="both")))
    sources = sorted({e.source for e in both.edges if e.source.startswith("resid.1/") and "error" not in e.source})
    one, two = (NodeId.parse(name).index for name in sources[:2])
    only = {"graph__sites": "resid", "graph__threshold_exp": -6}
    graph_naive.run(ask(graph__pin=f"1:{one}", graph__name="one", **only))
    first = graphs.from_records(run.stream())[-1]
    path = str(run.path / "graphs" / "one.jsonl")
    grown = graph_of(graph_naive.run(ask(graph__pin=f"1:{two}", graph__name="two", graph__extend=path, **only)))
    check_traces(grown)
    assert {edge.source for edge in grown.edges} >= {str(NodeId(HookPoint(1, "resid"), index)) for index in (one, two)}
    assert {(e.source, e.target) for e in first.edges} <= {(e.source, e.target) for e in grown.edges}
    with pytest.raises(InputError, match="has another prompt"):
        graph_naive.run(ask(graph__prompt="z = ", graph__extend=path, graph__name="three", **only))
    assert (
        (run.path / "graphs" / "one.jsonl").read_text(encoding="utf-8").splitlines()[0].startswith('{"kind": "graph"')
    )


def test_a_killed_naive_graph_goes_on_at_the_next_hook_point(ask, run, monkeypatch):
    from circuitcli.attribution.naive import NaiveSearch

    whole = graph_of(graph_naive.run(ask(graph__name="whole", graph__threshold_exp=-6)))
    original, done = NaiveSearch.part, []

    def dies(self, hook):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(hook)
        return original(self, hook)

    monkeypatch.setattr(NaiveSearch, "part", dies)
    with pytest.raises(KeyboardInterrupt):
        graph_naive.run(ask(graph__name="broken", graph__threshold_exp=-6))
    assert run.stage("graph:broken")["state"] == "interrupted"
    again: list = []
    monkeypatch.setattr(NaiveSearch, "part", lambda self, hook: (again.append(hook), original(self, hook))[1])
    resumed = graph_of(graph_naive.run(ask(graph__name="broken", graph__threshold_exp=-6)))
    assert len(again) == 2 and not set(again) & set(done)
    assert resumed.nodes == whole.nodes and resumed.edges == whole.edges
    assert not (run.path / "graphs" / "broken.parts").exists()


def test_a_damaged_part_of_a_killed_naive_graph_is_made_again(ask, run, monkeypatch):
    monkeypatch.setattr("circuitcli.attribution.naive.NaiveSearch.graph", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graph_naive.run(ask(graph__thin=0.01))
    parts = sorted((run.path / "graphs" / "naive.parts").iterdir())
    whole = [part.read_text(encoding="utf-8") for part in parts]
    assert len(parts) == 4
    fingerprint = json.loads(whole[0])["fingerprint"]
    for part, content in zip(
        parts, ("", "[1]", '{"nodes": 3', f'{{"fingerprint": "{fingerprint}", "nodes": 3}}'), strict=True
    ):
        part.write_text(content, encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        graph_naive.run(ask(graph__thin=0.01))
    assert [part.read_text(encoding="utf-8") for part in parts] == whole


@pytest.mark.parametrize("stage", [graph_grad, graph_naive])
def test_what_is_not_finite_is_an_error_of_the_input(ask, monkeypatch, stage):
    """As where activations overflow in half precision."""
    from circuitcli.attribution.metrics import LogProb

    original = LogProb.value
    monkeypatch.setattr(LogProb, "value", lambda self, *given: original(self, *given) * float("nan"))
    with pytest.raises(InputError, match="the metric of this prompt is not finite") as caught:
        stage.run(ask(graph__thin=0.01))
    assert "--dtype float32" in caught.value.hint
    # The clean run and that with nothing have one row each; of several, as in ablations and gradients, one overflows.
    monkeypatch.setattr(
        LogProb, "value", lambda self, *given: original(self, *given) * (1.0 if len(given[0]) == 1 else float("nan"))
    )
    with pytest.raises(InputError, match="is not finite"):
        stage.run(ask(graph__thin=0.05))


def test_scores_of_a_graph_have_their_policies_and_stand_beside_chance(ask, run):
    graph_grad.run(ask())
    made = Stream(validate.run(ask())).of(ScoreRecord)
    named = {(score.name, getattr(score, "errors", None)): score for score in made}
    for policy in ("nodes", "kept", "removed"):
        assert ("faithfulness", policy) in named and ("completeness", policy) in named
    judged = named["faithfulness", "nodes"]
    expected = (judged.metric_circuit - judged.metric_empty) / (judged.metric_clean - judged.metric_empty)
    assert judged.value == pytest.approx(expected) and judged.judged and judged.ablation == "mean"
    assert ("minimality", "nodes") in named and named["faithfulness-random", "nodes"].samples == 3
    report = json.loads((run.path / "reports" / "circuit.json").read_text(encoding="utf-8"))
    joint = report["ablated_together"]
    assert joint["tokens"] and named["effect", None].value == pytest.approx(joint["effect"])


def test_the_full_circuit_is_faithful_and_the_threshold_judges(ask, run):
    request = ask()
    head = graph_of(graph_grad.run(request)).head
    nodes = [NodeRecord(id=f"{hook}/{index}") for hook in head.saes for index in [*range(150), "error"]]
    asked = settings(validate__at_least=0.99, validate__minimality=False)
    full = Request(asked, Stream([*run.stream(), head, *nodes]), run)
    made = validate.run(full)
    score = next(score for score in Stream(made).of(ScoreRecord) if score.name == "faithfulness")
    assert score.value == pytest.approx(1, abs=1e-4)
    validate.check(made, full.settings)
    with pytest.raises(ThresholdError, match=r"below 1\.5") as caught:
        validate.check(made, settings(validate__at_least=1.5))
    # Each kind of graph grows by settings of its own.
    assert all(name in caught.value.hint for name in ("--down", "--frozen", "--node-threshold", "--threshold-exp"))


def test_pins_are_ablated_together(ask, run):
    graph = graph_of(graph_grad.run(ask()))
    active = [node.place for node in graph.nodes if node.place and node.place.index is not None and node.activation]
    pins = [f"{place.hook}:{place.index}" for place in active[:3]]
    made = Stream(validate.run(ask(validate__pin=tuple(pins)))).of(ScoreRecord)
    effect = next(score for score in made if score.name == "effect")
    assert effect.graph == "pins" and effect.ablation == "zero" and effect.value != 0
    report = json.loads((run.path / "reports" / "pins.json").read_text(encoding="utf-8"))
    before = sum(shift["clean"] for shift in report["ablated_together"]["tokens"])
    assert 0 < before <= 1.001 and all(
        shift["clean"] != shift["ablated"] for shift in report["ablated_together"]["features"]
    )


def test_prompts_from_a_file_give_an_interval(ask, tmp_path):
    graph_grad.run(ask())
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": PROMPT},
        {"prompt": "class A:\n    def f(self):\n        self.", "target": "_"},
        {"prompt": "x = ("},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    made = Stream(validate.run(ask(validate__prompts=str(path)))).of(ScoreRecord)
    score = next(score for score in made if score.name == "faithfulness")
    assert score.n_prompts == 3 and score.low <= score.high
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2 is not a prompt"):
        validate.run(ask(validate__prompts=str(path)))


@pytest.mark.parametrize(
    ("stage", "changes", "kind", "message"),
    [
        (graph_grad, {"graph__prompt": ""}, InputError, "prompt is empty"),
        (graph_grad, {"graph__target": " two words"}, InputError, "is not one token"),
        (graph_grad, {"graph__metric": "logit-diff"}, SettingsError, "needs a foil"),
        (graph_grad, {"graph__foil": "("}, SettingsError, "log-prob takes no foil"),
        (graph_naive, {"graph__metric": "kl", "graph__target": "("}, SettingsError, "kl takes no target"),
        (graph_naive, {"graph__metric": "cross-entropy", "graph__positions": "last"}, SettingsError, "last position"),
        (graph_grad, {"graph__metric": "cross-entropy", "graph__positions": "last"}, SettingsError, "last position"),
        (graph_grad, LOGIT_DIFF | {"graph__target": "ma"}, SettingsError, "are the same token, 'ma'$"),
        (graph_grad, LOGIT_DIFF, SettingsError, "the same token, 'ma', the most likely next one"),
        (graph_naive, {"graph__positions": "last", "graph__pin": "1:0"}, InputError, "is silent at the last position"),
        (graph_grad, {"graph__metric": "kl", "graph__method": "atp"}, SettingsError, "no gradient at the clean run"),
        (graph_grad, {"graph__layers": "7:9"}, SettingsError, "goes past the last layer"),
        (graph_grad, {"graph__layers": "1:999999999999999"}, SettingsError, "goes past the last layer"),
        (graph_grad, {"graph__layers": "3:4"}, InputError, "no SAE at layers 3, sites any"),
        (graph_grad, {"graph__name": "../x"}, SettingsError, "cannot be the name"),
        (graph_grad, {"graph__extend": "missing.jsonl"}, InputError, "cannot read missing.jsonl"),
        (graph_naive, {"graph__pin": "6:1"}, InputError, "pinned hook point resid.6 is not in the circuit"),
        (graph_naive, {"graph__pin": "1:9999"}, InputError, "has no feature 9999"),
        (graph_naive, {"graph__pin": "resid"}, SettingsError, "is not a pin"),
        (validate, {}, InputError, "read no 'graph' record"),
        (validate, {"validate__graph": "nope"}, InputError, "no graph named 'nope'"),
        (validate, {"validate__pin": "6:1"}, InputError, "no SAE at pinned hook point resid.6"),
        (graph_grad, {"sae_path": "/nonexistent"}, InputError, "no SAE in"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(ask, stage, changes, kind, message):
    with pytest.raises(kind, match=message.replace(".", r"\.")):
        stage.run(ask(**changes))


def test_weights_that_changed_since_they_were_recorded_are_refused(ask, run):
    weights = run.path / "saes" / "resid.1" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="are not those that were recorded"):
        graph_grad.run(ask())


def test_saes_can_be_named_by_a_directory(ask, run, trained):
    one = graph_of(graph_grad.run(ask(sae_path=str(trained / "saes" / "resid.2"), graph__name="one")))
    assert set(one.head.saes) == {"resid.2"}
    whole = graph_of(graph_grad.run(ask(sae_path=str(trained), graph__name="whole")))
    assert set(whole.head.saes) == {"resid.1", "mlp.1", "resid.2", "mlp.2"}


def test_saes_in_others_files_give_the_same_graph(ask, tmp_path):
    own = graph_of(graph_grad.run(ask(graph__name="own")))
    export.run(ask(), format_="sae_lens", output=str(tmp_path / "theirs"))
    theirs = graph_of(graph_grad.run(ask(sae_path=str(tmp_path / "theirs"), graph__name="theirs")))
    effects = {node.id: node.effect for node in own.nodes}
    assert {node.id for node in theirs.nodes} == set(effects) and len(effects) > 10
    for node in theirs.nodes:
        assert node.effect == pytest.approx(effects[node.id], abs=1e-4)
    assert theirs.head.saes != own.head.saes


def test_saes_of_another_width_are_refused(ask, tmp_path):
    files.save(ReluSae(SaeConfig(HookPoint(1, "resid"), 6, 17)), tmp_path / "narrow")
    with pytest.raises(InputError, match=r"the SAE at resid\.1 is for activations of width 6, the model has 128"):
        graph_grad.run(ask(sae_path=str(tmp_path / "narrow")))


def test_edges_have_units(ask):
    grad = Stream(graph_grad.run(ask())).of(EdgeRecord)
    naive = Stream(graph_naive.run(ask(graph__threshold_exp=-8))).of(EdgeRecord)
    assert {edge.unit for edge in grad} == {"nats"}
    assert {edge.unit for edge in naive if edge.target != OUTPUT} == {"activation"}
    assert {edge.unit for edge in naive if edge.target == OUTPUT} == {"nats"}


def test_a_mistake_leaves_the_run_as_it_was(ask, run):
    before = run.manifest()
    with pytest.raises(InputError):
        graph_grad.run(ask(graph__target=" two words"))
    assert run.manifest() == before
    made = graph_grad.run(ask())
    with pytest.raises(InputError):
        graph_grad.run(ask(force=True, graph__target=" two words"))
    again = [records.to_line(record) for record in graph_grad.run(ask())]
    assert again == [records.to_line(record) for record in made], "a failed --force takes nothing away"


@pytest.mark.parametrize(
    ("stage", "changes", "difference"),
    [
        (graph_naive, {"graph__layers": "2:3"}, "set of spliced hook points"),
        (graph_naive, {"graph__baseline": "mean"}, "baseline"),
        (graph_naive, {"graph__positions": "all"}, "positions"),
        (graph_naive, {"graph__metric": "kl"}, "metric"),
        (graph_grad, {"graph__baseline": "zero", "graph__positions": "sum"}, "method"),
    ],
)
def test_a_graph_of_another_splice_or_unit_or_method_is_not_extended_and_nothing_is_computed_first(
    ask, run, monkeypatch, stage, changes, difference
):
    graph_naive.run(ask(graph__layers="1:2", graph__thin=0.01, graph__name="first"))
    path = run.path / "graphs" / "first.jsonl"
    first = path.read_bytes()
    monkeypatch.setattr("circuitcli.attribution.naive.NaiveSearch.part", None)
    monkeypatch.setattr("circuitcli.attribution.selection.find_circuit", None)
    before = run.manifest()
    asked = {"graph__layers": "1:2", "graph__extend": str(path), **changes}
    with pytest.raises(InputError, match=f"another {difference}: "):
        stage.run(ask(**asked))
    assert run.manifest() == before and path.read_bytes() == first


def test_a_head_holds_what_its_baseline_was_drawn_from(ask, run):
    heads = {}
    for seed in (0, 1):
        made = graph_grad.run(ask(graph__baseline="resample", graph__method="atp", graph__name=f"s{seed}", seed=seed))
        heads[seed] = head = graph_of(made).head
        assert (head.seed, head.bos, head.n_prompts, head.n_positions) == (seed, True, 1, len(head.tokens))
        assert len(head.baseline_ids) == head.n_positions == len(head.ids)
    assert tuple(heads[0].baseline_ids) != tuple(heads[1].baseline_ids)
    request = ask(seed=1)
    model = load_model(request.settings.model)
    assert tuple(model.tokenizer.token_strings(heads[0].ids)) == heads[0].tokens
    cache = ActivationCache(run.path / "activations", [HookPoint(1, "resid")])
    blocks = [block.ids[: heads[0].n_positions] for block in cache.blocks(0, cache.n_tokens)]
    assert list(heads[0].baseline_ids) in blocks
    loaded = load_saes(sources := sae_sources(request, stage="test"), sources, model=None, adapter=None)
    coders = Coders.of(subjects.fitted(one.sae, model.adapter) for one in loaded.values())
    subject = subjects.build(model.adapter, coders, [encode_prompt(PROMPT, model.tokenizer, model.adapter)])
    for seed, head in heads.items():
        # With another seed at hand, the drawn row alone gives the same numbers.
        rule = baseline_rule(request, "resample", coders, request.settings.graph, rows={0: head.baseline_ids})
        nothing = circuits.kept_nodes(subject, ())
        value = float(circuits.circuit_metric(subject, rule(subject, (0,)), [nothing], batch_size=1))
        assert value == pytest.approx(head.metric_baseline, abs=1e-5), seed
    with pytest.raises(InputError, match="has 3 tokens"):
        baseline_rule(request, "resample", coders, request.settings.graph, rows={0: [1, 2, 3]})(subject, (0,))


def sources_of(request):
    return load_saes(sources := sae_sources(request, stage="test"), sources, model="builtin:tiny", adapter=None)


def test_a_naive_graph_of_the_last_position_is_that_part_of_the_graph_of_all_positions(ask):
    prompt = {"graph__prompt": "x = (", "graph__threshold_exp": -20}
    last = graph_of(graph_naive.run(ask(graph__positions="last", graph__name="last", **prompt)))
    whole = graph_of(graph_naive.run(ask(graph__positions="all", graph__name="all", **prompt)))
    end = last.head.n_positions - 1
    assert {node.place.position for node in last.nodes if node.place} == {end}
    found = {(edge.source, edge.target): edge.weight for edge in last.edges}
    expected = {
        (edge.source, edge.target): edge.weight
        for edge in whole.edges
        if all(name == OUTPUT or NodeId.parse(name).position == end for name in (edge.source, edge.target))
    }
    strong = {pair for pair, weight in expected.items() if abs(weight) > 1e-3}
    assert len(strong) > 50 and strong <= found.keys()
    for pair in found.keys() & expected.keys():
        assert found[pair] == pytest.approx(expected[pair], abs=1e-4)
    for node in last.nodes:
        assert node.activation == pytest.approx(whole.by_id[node.id].activation, abs=1e-5)


def test_a_graph_without_a_node_says_why(ask, caplog):
    same = {"graph__baseline": "counterfactual", "graph__counterfactual": PROMPT}
    for number, (stage, changes, why) in enumerate(
        [
            (graph_naive, {"graph__threshold_exp": 20}, r"no difference is above 1.04858e\+06"),
            (graph_naive, same, "every feature and error is at its baseline already"),
            (graph_grad, {"graph__method": "atp", **same}, "every feature and error is at its baseline already"),
        ]
    ):
        made = graph_of(stage.run(ask(graph__name=f"g{number}", graph__thin=0.1, **changes)))
        assert [node.id for node in made.nodes] == [OUTPUT] and not made.edges
        assert re.search(f"graph g{number} has no node: {why}", caplog.text)


def test_scores_of_an_earlier_graph_of_the_same_name_are_not_shown(ask, run):
    graph_grad.run(ask())
    validate.run(ask())
    old = run.stream()
    assert scores_of(graphs.from_records(old)[-1], old)
    graph_grad.run(ask(force=True, graph__prompt="x = "))
    new = run.stream()
    assert not scores_of(graphs.from_records(new)[-1], new)


def test_the_graph_asked_for_last_is_the_one_that_is_tested(ask, run):
    for prompt, name in (("x = ", "a"), ("y = ", "b"), ("x = ", "a")):
        graph_grad.run(ask(graph__prompt=prompt, graph__name=name))
    assert graphs.from_records(run.stream())[-1].head.name == "a"


def test_a_graph_is_tested_on_its_own_behaviour(ask):
    graph_grad.run(ask())
    with pytest.raises(SettingsError, match="is about the prompt"):
        validate.run(ask(graph__prompt="something else"))


def test_saes_of_another_model_are_said_aloud(ask, run, caplog):
    config = run.path / "saes" / "resid.2" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("builtin:tiny", "gpt2"), encoding="utf-8")
    graph_grad.run(ask())
    assert "the SAE at resid.2 was trained on gpt2, not on builtin:tiny" in caplog.text


def test_split_attention_scores_follow_the_graph_and_are_in_its_file_and_tables(ask, run):
    made = graph_grad.run(ask(graph__qk=("2.1:6,3",), graph__pairs=4))
    at = next(index for index, record in enumerate(made) if record.kind == "attention")
    assert {record.kind for record in made[at + 1 :]} == {"pair"} and made[at].graph == "circuit"
    assert records.read_file(run.path / "graphs" / "circuit.jsonl").of(PairRecord) == made[at + 1 :]
    both = [pair for pair in made[at + 1 :] if pair.query and pair.key]
    assert len(both) == 4
    assert sum(pair.weight for pair in both) + made[at].rest == pytest.approx(made[at].score, abs=1e-5)
    pairs, queries, keys = tables(made, run.path)[-3:]
    assert "head 2.1 at 6 " in pairs.title and len(pairs.rows) == 5 and len(queries.rows) == len(keys.rows) == 4
    assert sum(float(row[0]) for row in pairs.rows) == pytest.approx(made[at].score, rel=1e-2)
    assert graphs.CircuitGraph.load(run.path / "graphs" / "circuit.jsonl").head.name == "circuit"


def test_a_score_that_is_not_there_is_refused_and_changes_nothing(ask, run):
    with pytest.raises(SettingsError, match="no position 60"):
        graph_grad.run(ask(graph__qk=("2.1:60,3",)))
    assert not (run.path / "graphs").exists()


FROZEN = {name: value for name, value in SMALL.items() if name not in ("graph.ig_steps", "graph.down", "graph.up")}
FROZEN = {name: value for name, value in FROZEN.items() if name != "graph.baseline_tokens"}


@pytest.fixture
def ask_frozen(run: Run) -> Callable[..., Request]:
    """Settings of frozen graphs alone: others are refused."""

    def request(force: bool = False, **changes) -> Request:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        chosen = FROZEN | {"graph.frozen": True, "graph.batch_size": 32} | named
        return Request(load(chosen, environment={}, directory=Path("/nonexistent")).settings, run.stream(), run, force)

    return request


def test_a_frozen_graph_has_its_scores_and_checks_its_nodes_and_its_place_in_the_run(ask_frozen, run, tmp_path):
    made = graph_grad.run(ask_frozen(graph__check_edges=30))
    graph, scores = graph_of(made), Stream(made).of(ScoreRecord)
    head = graph.head
    assert head.method == "frozen" and head.n_active == head.n_expanded and not head.effects
    assert head.next_tokens[0] == (head.target, pytest.approx(math.exp(head.metric_clean)))
    assert 0 < head.replacement < 1 and 0 < head.completeness_of_inputs < head.completeness < 1
    names = ("feature", "error", "token", "logit")
    kinds = {kind: [node for node in graph.nodes if node.kind == kind] for kind in names}
    assert all(kinds.values()) and OUTPUT not in graph.by_id
    assert {node.id for node in kinds["logit"]} == set(head.logits)
    assert sum(node.probability for node in kinds["logit"]) <= 1
    assert [head.tokens[node.place.position] for node in kinds["token"]] == list(head.tokens[1:])
    assert all(node.influence > 0 and node.unit == "nats" for node in kinds["feature"])
    assert {edge.unit for edge in graph.edges} == {"pre-activation", "logits"}
    check_traces(graph)
    found = {score.name: score.value for score in scores}
    assert found["edges: relative error"] == head.checks["relative_error"] < 1e-3
    told = json.loads((run.path / "reports" / "circuit.edges.json").read_text())
    assert len(told["checks"]) == 30 and told["checks"][0]["source"] in graph.by_id
    again = graph_grad.run(ask_frozen(graph__check_edges=30))
    assert [records.to_line(one) for one in again] == [records.to_line(one) for one in made]
    measured = Stream(validate.run(ask_frozen(validate__samples=2))).of(ScoreRecord)
    assert {"faithfulness", "completeness"} <= {score.name for score in measured}
    output = tmp_path / "graph.html"
    assert render.run(Request(settings(render__output=str(output)), run.stream(), run), stdout=io.StringIO())
    assert "token embedding" in output.read_text(encoding="utf-8")


def test_a_frozen_graph_of_a_named_target_and_foil_has_these_logits(ask_frozen):
    head = graph_of(graph_grad.run(ask_frozen(graph__target="ma", graph__name="one"))).head
    assert list(head.logits.values()) == ["ma"]
    changes = {"graph__target": "ma", "graph__foil": "sa", "graph__metric": "logit-diff"}
    head = graph_of(graph_grad.run(ask_frozen(graph__name="two", **changes))).head
    assert list(head.logits.values()) == ["ma", "sa"] and head.unit == "logits"


def test_fewer_features_than_are_active_are_expanded_where_that_is_asked_for_and_python_makes_the_same(ask_frozen, run):
    graph = graph_of(graph_grad.run(ask_frozen(graph__max_nodes=40)))
    model, coders = circuitcli.load_model("builtin:tiny", device="cpu"), circuitcli.load_coders(run.path)
    options = {"method": "frozen", "settings": {"max_nodes": 40, "batch_size": 32}}
    made = circuitcli.find_circuit(model, coders, PROMPT, **options)
    assert (made.nodes, made.edges, made.head.replacement) == (graph.nodes, graph.edges, graph.head.replacement)
    changes = {"baseline": "counterfactual", "counterfactual": PROMPT}
    with pytest.raises(SettingsError, match="takes nodes away whole"):
        circuitcli.find_circuit(model, coders, PROMPT, **changes, **options)
    with pytest.raises(SettingsError, match="down is of ig"):
        circuitcli.find_circuit(model, coders, PROMPT, down=3, **options)
    assert graph.head.n_expanded == 40 < graph.head.n_active
    assert sum(node.kind == "feature" for node in graph.nodes) <= 40


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"graph__method": "atp"}, "reads no --method"),
        ({"graph__baseline": "mean"}, "reads no --baseline; it is zero"),
        ({"graph__positions": "sum"}, "reads no --positions; it is all"),
        ({"graph__counterfactual": "x"}, "reads no --counterfactual"),
        ({"graph__metric": "kl"}, "no gradient at the clean run"),
        ({"graph__sequences": 3, "graph__prompt": None}, "of one prompt, not of 3"),
    ],
)
def test_what_a_frozen_graph_does_not_read_is_refused(ask_frozen, changes, why):
    with pytest.raises(SettingsError, match=why) as caught:
        graph_grad.run(ask_frozen(**changes))
    assert caught.value.hint


def test_settings_of_how_other_graphs_are_found_change_nothing_and_are_told(ask_frozen, caplog):
    """They may stand in a file or in the environment for other graphs."""
    one = graph_of(graph_grad.run(ask_frozen()))
    with caplog.at_level("WARNING"):
        other = graph_of(graph_grad.run(ask_frozen(graph__down=3, graph__ig_steps=4)))
    assert other == one
    assert "a frozen graph reads no --down --steps: nothing changes" in caplog.text


def test_settings_of_frozen_graphs_are_refused_without_frozen(ask):
    with pytest.raises(SettingsError, match="--max-nodes is of frozen graphs"):
        graph_grad.run(ask(graph__max_nodes=5))


def test_settings_as_they_are_printed_make_the_same_graphs(ask, ask_frozen, run):
    """All of them are given there, most as they are by default."""
    for request in (ask(), ask_frozen()):
        one = graph_of(graph_grad.run(request))
        given = type(request.settings).model_validate(request.settings.model_dump())
        assert given.graph.model_fields_set == set(type(given.graph).model_fields)
        assert graph_of(graph_grad.run(Request(given, run.stream(), run))) == one


def test_shares_of_influence_prune_graphs_where_they_are_given_also_as_they_would_be_anyway(ask):
    whole = graph_of(graph_grad.run(ask()))
    pruned = graph_of(graph_grad.run(ask(graph__node_threshold=0.8)))
    assert whole.head.node_threshold is None
    assert (pruned.head.node_threshold, pruned.head.edge_threshold) == (0.8, 0.98)
    assert len(pruned.nodes) < len(whole.nodes)


def test_a_frozen_graph_of_several_prompts_is_refused(ask_frozen, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x = "}\n{"prompt": "y = "}\n')
    with pytest.raises(InputError, match="and there are 2"):
        graph_grad.run(ask_frozen(graph__prompt=None, graph__prompts=str(path)))
    made = graph_of(graph_grad.run(ask_frozen(graph__prompt=None, graph__prompts=str(path), graph__n_prompts=1)))
    assert made.head.method == "frozen"


def test_an_estimate_counts_edges_exactly_and_makes_no_graph(ask_frozen, run):
    told = dict(graph_frozen.plan(ask_frozen()))
    assert not (run.path / "graphs" / "circuit.jsonl").exists()
    head = graph_of(graph_grad.run(ask_frozen(graph__node_threshold=1, graph__edge_threshold=1))).head
    assert int(told["active features"].replace(",", "")) == head.n_active
    assert told["time"].endswith((" s", " min")) and "GB" in told["memory"]


def test_a_frozen_graph_that_does_not_fit_says_what_would(ask_frozen, monkeypatch):
    monkeypatch.setattr("circuitcli.attribution.frozen.estimate.available_bytes", lambda: held_bytes() + 200_000)
    with pytest.raises(InputError, match="features with about") as caught:
        graph_grad.run(ask_frozen())
    assert re.search(r"--max-nodes \d+, fewer --layers or a shorter prompt", caught.value.hint)


@pytest.mark.parametrize("method", ["frozen", "ig"])
def test_edges_between_nodes_are_split_into_heads_if_that_is_asked_for(run, method):
    of_frozen = ("model.", "data.", "graph.prompt")
    chosen = {name: value for name, value in SMALL.items() if method != "frozen" or name.startswith(of_frozen)}
    named = chosen | {"graph.heads": True, **({"graph.frozen": True} if method == "frozen" else {})}
    settings = load(named, environment={}, directory=Path("/nonexistent")).settings
    graph = graph_of(graph_grad.run(Request(settings, run.stream(), run)))
    edges = [edge for edge in graph.edges if method == "frozen" or edge.target != OUTPUT]
    assert edges and any(name[0].isdigit() for edge in edges for name in edge.heads)
    for edge in edges:
        assert sum(edge.heads.values()) == pytest.approx(edge.weight, rel=1e-4, abs=1e-6)
    assert graphs.CircuitGraph.load(run.path / "graphs" / "circuit.jsonl").edges == graph.edges


def test_heads_of_a_rule_that_scales_gradients_within_attention_are_refused(ask):
    with pytest.raises(SettingsError, match="--method gim cannot be split into heads"):
        graph_grad.run(ask(graph__heads=True, graph__method="gim"))
