"""Circuits from Python: the same as the commands find and measure, from texts, files and behaviours, without a run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from test_graph_stages import PROMPT, graph_of
from test_graph_stages import ask as ask
from test_graph_stages import run as run
from test_graph_stages import trained as trained

import circuitcli as circuit
from circuitcli.errors import InputError
from circuitcli.records import CurveRecord, ScoreRecord, Stream, VerdictRecord
from circuitcli.stages import graph_grad, graph_naive, validate

SMALL = dict(down=3, up=2, steps=3, settings={"baseline_tokens": 512})
QUICK = dict(samples=3, bootstrap=0)
# As the README and the issue write it.
EXAMPLE = """
import circuitcli as circuit
model = circuit.load_model("builtin:tiny"); coders = circuit.load_coders("runs/builtin-tiny")
graph = circuit.find_circuit(model, coders, "for i in range(", down=5, up=3)
scores = circuit.validate(model, coders, graph); nodes, edges = graph.to_pandas(); graph.to_networkx()
graph.save("g.jsonl"); again = circuit.CircuitGraph.load("g.jsonl")
graph
"""


@pytest.fixture(scope="module")
def model() -> circuit.LanguageModel:
    return circuit.load_model("builtin:tiny", device="cpu")


@pytest.fixture(scope="module")
def coders(trained: Path):
    return circuit.load_coders(trained)


@pytest.fixture
def in_a_project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run of the built-in model where its command puts it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "builtin-tiny").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs(in_a_project: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        exec(compile(block, f"README.md python {number}", "exec"), {})


def test_the_example_runs_as_it_stands(in_a_project: Path):
    names: dict = {}
    exec(EXAMPLE, names)
    graph = names["graph"]
    assert names["again"] == graph and len(graph) > 5
    assert len(names["nodes"]) == len(graph.nodes) and len(names["edges"]) == len(graph.edges)
    assert graph.head.prompt == "for i in range(" and graph.head.baseline == "mean"
    assert set(names["scores"]["faithfulness"].model_dump()) >= {"low", "high", "judged"}
    assert "<iframe" in graph._repr_html_()


def same_graph(found: circuit.CircuitGraph, made: circuit.CircuitGraph) -> None:
    """All nodes and edges, and all that both heads tell but where the command keeps its graph."""
    assert found.nodes == made.nodes and found.edges == made.edges
    told = {name: value for name, value in found.head if value is not None and name != "name"}
    assert told == {name: value for name, value in made.head if value is not None and name not in ("name", "path")}


def test_a_gradient_graph_and_its_scores_are_those_of_the_commands(model, coders, ask, tmp_path: Path):
    found = circuit.find_circuit(model, coders, PROMPT, **SMALL)
    same_graph(found, graph_of(graph_grad.run(ask())))
    found.save(tmp_path / "found.jsonl")
    of_command = validate.run(ask(validate__graph=str(tmp_path / "found.jsonl")))
    scores = circuit.validate(model, coders, found, **QUICK)
    expected = [one for one in Stream(of_command).of(ScoreRecord) if one.name != "effect"]
    assert [one.model_dump(exclude={"graph", "graph_digest"}) for one in scores] == [
        one.model_dump(exclude={"graph", "graph_digest"}) for one in expected
    ]
    assert scores.faithfulness == scores["faithfulness"].value
    without = {"graph", "graph_digest"}
    for own, theirs in ((scores.curves, CurveRecord), ((scores.verdict,), VerdictRecord)):
        told = [one.model_dump(exclude=without) for one in Stream(of_command).of(theirs)]
        assert [one.model_dump(exclude=without) for one in own] == told and told
    assert "faithfulness-random-active" in str(scores) and "minimality" in scores._repr_html_()
    assert str(scores).startswith(f"{scores.verdict.verdict}: ") and scores._repr_html_().startswith("<p>")
    with pytest.raises(KeyError, match="faithfulness"):
        scores["faith"]


def test_a_naive_graph_is_that_of_the_command(model, coders, ask):
    made = graph_naive.run(ask(graph__thin=0.2, graph__threshold_exp=-2))
    found = circuit.find_circuit(model, coders, PROMPT, method="naive", settings={"thin": 0.2, "threshold_exp": -2})
    assert found.nodes == graph_of(made).nodes and found.edges == graph_of(made).edges
    assert found.head.share_kept == graph_of(made).head.share_kept
    assert found.head.next_tokens == graph_of(made).head.next_tokens and len(found.head.next_tokens) == 10


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [
        {"prompt": "for i in range(", "target": "0", "foil": "1", "counterfactual": "for x in range("},
        {"prompt": "if i in range(", "target": "0", "foil": "1", "counterfactual": "if x in range("},
    ]
    path = tmp_path_factory.mktemp("prompts") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_of_a_file_are_a_behaviour_and_a_graph_of_them_is_tested_on_them(model, coders, pairs, ask, tmp_path):
    options = dict(down=3, up=2, method="atp")
    by_file = circuit.find_circuit(model, coders, pairs, metric="logit-diff", baseline="counterfactual", **options)
    behaviour = circuit.Behaviour.of(pairs, metric="logit-diff", baseline="counterfactual")
    by_value = circuit.find_circuit(model, coders, behaviour, **options)
    listed = circuit.find_circuit(
        model, coders, behaviour.examples, metric="logit-diff", baseline="counterfactual", **options
    )
    assert by_file == by_value and (by_file.nodes, by_file.edges) == (listed.nodes, listed.edges)
    assert by_file.head.n_prompts == 2 and by_file.head.prompts == str(pairs)
    assert all(node.standard_error is not None for node in by_file.nodes if not node.is_output)
    listed.save(tmp_path / "graph.jsonl")
    scores = circuit.validate(model, coders, circuit.CircuitGraph.load(tmp_path / "graph.jsonl"), **QUICK)
    again = circuit.validate(model, coders, by_file, pairs, **QUICK)
    assert scores.faithfulness == circuit.validate(model, coders, by_file, **QUICK).faithfulness
    # Their positions do not count on prompts that are given.
    assert again["faithfulness"].metric_clean == scores["faithfulness"].metric_clean
    assert scores["faithfulness"].n_prompts == 2
    of_command = validate.run(ask(validate__graph=str(tmp_path / "graph.jsonl"), graph__prompt=None))
    judged = next(one for one in Stream(of_command).of(ScoreRecord) if one.judged)
    assert judged.value == scores.faithfulness


def test_what_is_given_beside_a_file_and_what_it_held_are_kept_with_the_graph(model, coders, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"prompt": "for i in range("}\n{"prompt": "for k in range("}\n', encoding="utf-8")
    graph = circuit.find_circuit(model, coders, file, target="1", baseline="zero", down=2, up=1, method="atp")
    file.unlink()
    graph.save(tmp_path / "graph.jsonl")
    tested = circuit.validate(model, coders, circuit.CircuitGraph.load(tmp_path / "graph.jsonl"), **QUICK)
    assert tested["faithfulness"].metric_clean == pytest.approx(graph.head.metric_clean, abs=1e-5)


def test_a_graph_of_many_prompts_that_a_command_made_is_tested_from_python(
    model, coders, pairs: Path, ask, run, tmp_path, monkeypatch
):
    asked = dict(graph__metric="logit-diff", graph__baseline="counterfactual", graph__down=2, graph__up=1)
    made = graph_of(graph_grad.run(ask(graph__prompt=None, graph__prompts=str(pairs), **asked)))
    monkeypatch.chdir(tmp_path)
    graph = circuit.CircuitGraph.load(run.path / made.head.path)
    graph.save("elsewhere.jsonl")
    for one in (graph, circuit.CircuitGraph.load("elsewhere.jsonl")):
        tested = circuit.validate(model, coders, one, **QUICK)
        assert tested["faithfulness"].metric_clean == pytest.approx(made.head.metric_clean, abs=1e-5)


@pytest.mark.parametrize("wrong", [dict(prompts=""), dict(prompts=PROMPT, target="two tokens here")], ids=str)
def test_no_prompt_is_to_be_left_out_where_there_is_one(model, coders, wrong):
    with pytest.raises(InputError) as caught:
        circuit.find_circuit(model, coders, baseline="zero", **wrong)
    assert "skip" not in caught.value.hint
    both = {**wrong, "prompts": [PROMPT + "0", wrong["prompts"]]}
    with pytest.raises(InputError, match=r"^prompt \d: ") as caught:
        circuit.find_circuit(model, coders, baseline="zero", **both)
    assert caught.value.hint.endswith("; skip_bad=True leaves such prompts out")


def test_bad_prompts_of_a_file_are_left_out_if_asked_and_the_graph_tells_which_were_used(model, coders, pairs: Path):
    mixed = pairs.with_name("mixed.jsonl")
    mixed.write_text(f'{{"prompt": ""}}\n{pairs.read_text(encoding="utf-8")}', encoding="utf-8")
    options = dict(metric="logit-diff", baseline="counterfactual", down=1, up=1, method="atp")
    with pytest.raises(circuit.InputError, match="line 1"):
        circuit.find_circuit(model, coders, mixed, **options)
    graph = circuit.find_circuit(model, coders, mixed, skip_bad=True, **options)
    assert graph.nodes == circuit.find_circuit(model, coders, pairs, **options).nodes
    assert circuit.validate(model, coders, graph, **QUICK)["faithfulness"].n_prompts == 2


def test_named_spans_are_positions_of_a_graph_and_of_its_test(model, coders):
    example = circuit.Example(PROMPT, spans=(("name", (25, 29)),))
    graph = circuit.find_circuit(model, coders, example, positions="spans", baseline="zero", down=2, method="atp")
    assert {node.place.position for node in graph.nodes if node.place} == {"name"}
    assert circuit.validate(model, coders, graph, **QUICK)["faithfulness"].judged


def test_several_texts_are_explained_together_and_tested_elsewhere(model, coders):
    prompts = ["for i in range(", "import os\nimport", "def main(self"]
    graph = circuit.find_circuit(model, coders, prompts, baseline="zero", down=2, up=1, method="atp")
    assert graph.head.positions == "sum" and graph.head.n_prompts == 3
    wide = dict(baseline="zero", down=100, up=100, method="atp", positions="sum")
    apart = [circuit.find_circuit(model, coders, one, **wide) for one in prompts]
    common = [node for node in graph.nodes[:-1] if all(node.id in one.by_id for one in apart)]
    for node in common:
        assert node.effect == pytest.approx(sum(one.by_id[node.id].effect for one in apart) / 3, rel=1e-3, abs=1e-5)
    assert common
    beside = {"control": apart[0], "basis": "neurons", "curve": "all"}
    scores = circuit.validate(model, coders, graph, "class A(", baseline="zero", **beside, **QUICK)
    assert scores["faithfulness"].n_prompts == 1 and scores["faithfulness"].held_out
    assert scores["faithfulness-neurons"].n_nodes == len(graph.nodes) - 1 and scores["faithfulness-control-graph"]
    assert {curve.ranked for curve in scores.curves} == {"graph", "all"} and scores.verdict.verdict != "validated"


def test_everything_is_faithful_and_nothing_is_not(model, coders):
    everything = [f"{hook}/{index}" for hook, coder in coders.items() for index in [*range(coder.d_sae), "error"]]
    scores = circuit.validate(model, coders, everything, PROMPT, baseline="zero", samples=0, minimality=False)
    assert scores.faithfulness == pytest.approx(1, abs=1e-4) and scores.completeness == pytest.approx(0, abs=1e-4)
    assert scores["completeness"].graph == "nodes"


def test_coders_in_memory_and_those_of_some_layers_make_circuits(model, coders, trained: Path):
    cache = circuit.ActivationCache(trained / "activations", [circuit.HookPoint(2, "resid")])
    made = circuit.train(cache, k=4, d_sae=60, batch_size=256, tokens=512, device="cpu")
    graph = circuit.find_circuit(model, made, PROMPT, cache=cache, **SMALL)
    assert [*graph.head.saes] == ["resid.2"] and graph.head.saes["resid.2"].startswith("sha256:")
    assert circuit.validate(model, made, graph, cache=cache, **QUICK)["faithfulness"].judged
    with torch.no_grad():
        made["resid.2"].W_enc[0] += 1
    with pytest.raises(circuit.InputError, match="not the one"):
        circuit.validate(model, made, graph, cache=cache, **QUICK)
    some = circuit.find_circuit(model, coders, PROMPT, layers=2, sites="mlp", baseline="zero", down=2, method="atp")
    assert [*some.head.saes] == ["mlp.2"]


def test_without_a_cache_means_are_those_of_the_models_usual_text(model, coders, trained: Path, tmp_path: Path):
    shutil.copytree(trained / "saes" / "resid.2", tmp_path / "mine" / "resid.2")
    alone = circuit.load_coders(tmp_path / "mine")
    options = dict(down=2, up=1, method="atp", settings={"baseline_tokens": 300})
    found = circuit.find_circuit(model, alone, PROMPT, **options)
    cache = circuit.collect(model, hooks="resid.2", tokens=300)
    assert found.head.baseline == "mean" and found.head.saes == {"resid.2": coders["resid.2"].digest}
    assert found.nodes == circuit.find_circuit(model, alone, PROMPT, cache=cache, **options).nodes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(prompts=""), "empty"),
        (dict(prompts=[]), "no prompt"),
        (dict(prompts=Path("no/such.jsonl")), "such.jsonl"),
        (dict(target="two words"), "two words"),
        (dict(foil="0", metric="log-prob"), "foil"),
        (dict(metric="logit-diff"), "foil"),
        (dict(layers="7:"), "7:"),
        (dict(layers=0), "no coder at layers 0"),
        (dict(baseline="counterfactual"), "counterfactual"),
        (dict(counterfactual="one"), "tokens"),
        (dict(down=0), "down=0"),
        (dict(down=3, method="naive"), "down is of ig"),
        (dict(steps=3, method="naive"), "steps is of ig"),
        (dict(steps=0), "steps=0: "),
        (dict(settings={"thinn": 1}), "thinn"),
        (dict(method="atp", metric="kl"), "method ig"),
        (dict(target="0", metric="kl"), "target"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_hint(model, coders, arguments: dict, said: str):
    with pytest.raises(circuit.CircuitError) as raised:
        circuit.find_circuit(model, coders, **{"prompts": PROMPT} | arguments)
    assert said in f"{raised.value.message} {raised.value.hint}" and raised.value.hint


def test_what_a_text_is_predicted_best_is_a_behaviour(model, coders, trained: Path):
    cache = circuit.ActivationCache(trained / "activations", ())
    behaviour = circuit.find_behaviour(model, cache, 2, tokens=700)
    text = model.tokenizer.decode(cache.tokens(cache.n_tokens - 700, cache.n_tokens).token.tolist())
    for example in behaviour.examples:
        assert example.prompt in text
    options = {"baseline": "zero", "method": "atp", "down": 1, "up": 1, "settings": {"min_share": 0}}
    graph = circuit.find_circuit(model, coders, behaviour, **options)
    assert graph.head.n_prompts == 2 and len(graph) > 1
