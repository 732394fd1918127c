# ruff: noqa: F811 (fixtures of another file)
"""`validate --stability`: what it records, what a kill leaves, and what it refuses."""

import json
import shutil

import pytest
import torch
from test_validate_stage import HOOKS, _one_model, ask, collected, graph, run, scored  # noqa: F401

from circuitcli import graphs
from circuitcli.cli.verdict import verdict
from circuitcli.errors import InputError, SettingsError
from circuitcli.records import ScoreRecord, StabilityRecord, Stream, VerdictRecord
from circuitcli.saes import files
from circuitcli.saes.topk import TopKSae
from circuitcli.stages import validate
from circuitcli.validation import refinding

QUICK = {
    **{"validate__samples": 0, "validate__minimality": False, "validate__top": 1},
    **{"validate__edges": False, "validate__curve": "none", "validate__shuffled": False},
}
PROMPTS = ("import os", "return x", "for i in range(", "def main(self")


@pytest.fixture
def of_many(graph, tmp_path):
    """A graph of four prompts, two nodes of each sign at a hook point."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return graph(graph__baseline="zero", graph__prompt=None, graph__prompts=str(file), graph__positions="sum")


@pytest.fixture
def searches(monkeypatch):
    """Counts the searches, and stops before the one of the number that is put there."""
    found = {"n": 0, "stop": None}
    whole = refinding.find_circuit

    def counted(*given):
        if found["n"] == found["stop"]:
            raise KeyboardInterrupt
        found["n"] += 1
        return whole(*given)

    monkeypatch.setattr(refinding, "find_circuit", counted)
    return found


def test_a_graph_is_found_again_on_samples_and_halves_and_a_kill_loses_no_search(ask, of_many, run, searches):
    asked = ask(validate__stability=3, **QUICK)
    searches["stop"] = 4
    with pytest.raises(KeyboardInterrupt):
        validate.run(asked)
    searches["stop"] = None
    made = Stream(validate.run(ask(validate__stability=3, **QUICK)))
    assert searches["n"] == 1 + 3 + 2 + 1, "itself, samples, a pair of halves, a rival; none of them twice"
    told = {(one.of, one.what): one for one in made.of(StabilityRecord)}
    assert {*told} == {(of, what) for of in ("graph", "bootstrap", "halves") for what in ("nodes", "edges")}
    assert told["graph", "nodes"].values == (1.0,) and told["graph", "edges"].rank in (None, pytest.approx(1.0))
    pairs = told["bootstrap", "nodes"]
    assert len(pairs.values) == 3 and pairs.value == pytest.approx(sum(pairs.values) / 3) and pairs.bar == 0.8
    assert 0 <= pairs.low <= pairs.median <= pairs.high <= 1 and pairs.n_prompts == 4
    scores = scored(made)
    assert scores["stability-bootstrap", "nodes"].value == pairs.value
    assert scores["stability-halves", "nodes"].value == told["halves", "nodes"].value
    verdicts = made.of(VerdictRecord)
    assert len(verdicts) == 1 and made.records[-1] == verdicts[0], "there is one verdict, about all of it"
    assert b"bootstrap samples" in (run.path / "figures" / "circuit-stability.svg").read_bytes()
    said = "\n".join(verdict(made))
    assert (
        "found again on bootstrap samples of the prompts, two searches share" in said and "another circuit of" in said
    )
    report = json.loads((run.path / "reports" / "circuit-stability.json").read_text())
    assert {"again", "sample 0", "half 0 a"} <= {*report["circuits"]}
    assert not [*(run.path / "reports").glob("*partial*")]
    before = searches["n"]
    assert [*validate.run(ask(validate__stability=3, **QUICK))] == [*made] and searches["n"] == before


def test_a_rival_has_none_of_the_strongest_nodes_and_is_tested_as_a_circuit_of_its_own(ask, of_many, run):
    made = Stream(validate.run(ask(validate__stability=1, validate__rival=2, **QUICK)))
    rival = {one.name: one for one in made.of(ScoreRecord)}["faithfulness-rival"]
    report = json.loads((run.path / "reports" / "circuit-stability.json").read_text())
    nodes = report["circuits"]["without 2"]["nodes"]
    own = graphs.load(run.path / "graphs" / "circuit.jsonl") if hasattr(graphs, "load") else None
    own = own or graphs.from_records(run.stream())[-1]
    gone = sorted((node for node in own.nodes if not node.is_output), key=lambda node: -abs(node.effect))[:2]
    assert nodes and not {node.id for node in gone} & {*nodes}
    assert rival.excluded == 2 and rival.n_nodes == len(nodes) and rival.n_prompts == 4
    faithful = scored(made)["faithfulness", "nodes"].value
    assert rival.difference == pytest.approx(faithful - rival.value, abs=1e-6)
    assert rival.difference_low <= rival.difference <= rival.difference_high


def test_coders_of_another_seed_with_the_same_features_in_another_order_find_the_same_circuit(
    ask,
    of_many,
    collected,
    tmp_path,
    caplog,
):
    for hook in HOOKS:
        own = files.load(collected / "saes" / str(hook))
        other, order = (
            TopKSae(own.config, k=own.k),
            torch.randperm(own.d_sae, generator=torch.Generator().manual_seed(4)),
        )
        with torch.no_grad():
            other.W_enc.copy_(own.W_enc[:, order])
            other.b_enc.copy_(own.b_enc[order])
            other.W_dec.copy_(own.W_dec[order])
            other.b_dec.copy_(own.b_dec)
        files.save(other, tmp_path / "other" / str(hook))
    made = Stream(validate.run(ask(validate__sae_seeds=(str(tmp_path / "other"),), **QUICK)))
    told = {(one.of, one.what): one for one in made.of(StabilityRecord)}
    assert {*told} == {(of, what) for of in ("graph", "seed") for what in ("nodes", "edges")}
    for what in ("nodes", "edges"):
        assert told["seed", what].value == 1.0 and told["seed", what].matched == 1.0
        assert told["seed", what].cosine == pytest.approx(1.0, abs=1e-5)
    shutil.rmtree(tmp_path / "other" / str(HOOKS[0]))
    with pytest.raises(InputError, match=f"has no SAE at {HOOKS[0]}"):
        validate.run(ask(validate__sae_seeds=(str(tmp_path / "other"),), **QUICK))


def test_what_cannot_be_found_again_is_refused_before_anything_is_run(ask, graph, monkeypatch):
    graph()
    monkeypatch.setattr(validate, "_work", lambda *given: pytest.fail("nothing should have been measured"))
    with pytest.raises(InputError, match="about one prompt") as refused:
        validate.run(ask(validate__stability=5))
    assert "--prompts" in refused.value.hint
    with pytest.raises(SettingsError, match="--scale is about no graph, so --graph changes nothing"):
        validate.run(ask(validate__graph="one", validate__scale="1:3=2", graph__prompt="import"))
    with pytest.raises(SettingsError, match="--rival is a part of --stability"):
        validate.run(ask(validate__rival=5))
