# ruff: noqa: F811 (fixtures of another file)
"""`validate --against`: what two graphs share, what makes one of the other, and how much more one keeps."""

import json
from dataclasses import replace

import pytest
import torch
from cli_support import here
from test_stability_stage import QUICK, of_many  # noqa: F401
from test_validate_stage import HOOKS, PROMPT, _one_model, ask, collected, graph, run, scored  # noqa: F401

from circuitcli import graphs
from circuitcli.cli.told import told
from circuitcli.errors import InputError
from circuitcli.records import ChangeRecord, ComparisonRecord, Stream
from circuitcli.runs import remember
from circuitcli.stages import against, validate
from circuitcli.validation.comparison import anywhere, difference, difference_of_two, edits
from circuitcli.validation.scores import Runs
from circuitcli.validation.stability import Found


def test_the_edit_list_makes_the_other_graph_of_one():
    one = Found({"resid.2/1@3": 0.5, "attn.1/error@2": -2.0, "resid.2/9": 1.0}, {("resid.2/1@3", "output"): 0.5})
    other = Found({"resid.2/9": 3.0, "mlp.1/4": -0.25, "resid.2/8": -7.0}, {("mlp.1/4", "resid.2/9"): 2.0})
    changes = edits(one, other)
    assert [(c.action, c.node or c.edge, c.strength) for c in changes] == [
        ("remove", "attn.1/error@2", -2.0),
        ("add", "mlp.1/4", -0.25),
        ("add", "resid.2/8", -7.0),
        ("remove", "resid.2/1@3", 0.5),
        ("add", ("mlp.1/4", "resid.2/9"), 2.0),
        ("remove", ("resid.2/1@3", "output"), 0.5),
    ]
    nodes, edges = set(one.nodes), set(one.edges)
    for change in changes:
        for have, name in ((nodes, change.node), (edges, change.edge)):
            if name is not None:
                have.add(name) if change.action == "add" else have.remove(name)
    assert nodes == set(other.nodes) and edges == set(other.edges) and edits(one, one) == ()


def test_without_positions_effects_and_weights_are_summed():
    found = anywhere(
        Found(
            {"resid.1/2@3": 0.5, "resid.1/2@4": 0.25, "resid.1/error@verb": 1.0},
            {("resid.1/2@3", "output"): 1.0, ("resid.1/2@4", "output"): 2.0, ("resid.1/2@3", "logit/7"): 4.0},
        )
    )
    assert found == Found(
        {"resid.1/2": 0.75, "resid.1/error": 1.0}, {("resid.1/2", "output"): 3.0, ("resid.1/2", "logit/7"): 4.0}
    )


def test_the_interval_of_a_difference_draws_the_same_prompts_for_both():
    generator = torch.Generator().manual_seed(0)
    clean, empty = torch.ones(12).double(), torch.zeros(12).double()
    shared = torch.rand(12, generator=generator).double()
    runs = Runs(clean, empty, shared + 0.1, shared)
    gap = difference(runs.circuit, shared, runs, bootstrap=200, seed=1)
    assert [gap.value, gap.low, gap.high] == pytest.approx([0.1] * 3), "what both have in common cancels"
    # By hand: draws of prompts, each share by its own range.
    other = Runs(2 * clean, empty, 2 * shared.flip(0), shared)
    draws = torch.randint(12, (50, 12), generator=torch.Generator().manual_seed(3))
    by_hand = torch.stack([(runs.circuit[d].mean() / 1) - (other.circuit[d].mean() / 2) for d in draws])
    found = difference_of_two(runs, other, "circuit", bootstrap=50, seed=3)
    assert found.low == pytest.approx(float(by_hand.quantile(0.025))) and found.low < found.value < found.high
    one = Runs(clean[:1], empty[:1], shared[:1], shared[:1])
    assert difference_of_two(one, one, "complement", bootstrap=50, seed=3).low is None


def test_graphs_are_compared_by_name_and_their_scores_are_those_of_their_own_tests(ask, of_many, run, monkeypatch):
    whole = graphs.from_records(run.stream())[-1]
    kept = [node for node in whole.nodes if not node.is_output][: len(whole.nodes) // 2]
    part = graphs.restricted(whole, [*(node.id for node in kept), "output"])
    file = run.path / "graphs" / "part.jsonl"
    replace(part, head=whole.head.model_copy(update={"name": "part"})).save(file)
    asked = ask(validate__graph="circuit", validate__against=str(file))
    made = Stream(validate.run(asked))
    (record,) = made.of(ComparisonRecord)
    assert (record.n_nodes, record.n_nodes_against) == (len(whole.nodes) - 1, len(kept))
    assert record.nodes == pytest.approx(len(kept) / (len(whole.nodes) - 1)) and record.n_added == 0
    removed = {change.id for change in made.of(ChangeRecord) if change.id is not None}
    assert removed == {node.id for node in whole.nodes if not node.is_output} - {node.id for node in kept}
    for name, key in (("circuit", "value"), (str(file), "against")):
        scores = scored(validate.run(ask(validate__graph=name, **QUICK)))
        for score in ("faithfulness", "completeness"):
            assert getattr(record, score)[key] == pytest.approx(scores[score, "nodes"].value, abs=1e-6)
    gap = record.faithfulness
    assert gap["difference"] == pytest.approx(gap["value"] - gap["against"])
    assert gap["difference_low"] <= gap["difference"] <= gap["difference_high"]
    report = json.loads((run.path / record.path).read_text())
    assert len(report["changes"]) == record.n_removed and "to remove and 0 to add" in [*told(made)][-1]
    monkeypatch.setattr(against, "_work", lambda *given: pytest.fail("it was done before"))
    assert [*validate.run(asked)] == [*made]


def test_a_graph_of_other_prompts_and_hook_points_is_tested_on_the_first_ones(ask, of_many, graph, run):
    own = graphs.from_records(run.stream())[-1]
    graph(graph__name="other", graph__layers="2", graph__baseline="zero")
    (record,) = Stream(validate.run(ask(validate__graph="circuit", validate__against="other"))).of(ComparisonRecord)
    assert own.head.n_prompts == 4 and record.faithfulness["against_low"] is not None, "four prompts, not one"
    assert record.nodes_anywhere > 0 and record.nodes == 0, "one has positions, one has none"


def test_graphs_through_other_coders_are_refused_with_their_status(ask, graph, collected, run, tmp_path):
    graph()
    head = graphs.from_records(run.stream())[-1].head
    other = graphs.CircuitGraph(head.model_copy(update={"name": "other", "saes": {str(HOOKS[0]): "sha256:0"}}))
    other.save(tmp_path / "other.jsonl")
    with pytest.raises(InputError, match=f"different SAEs at {HOOKS[0]}") as refused:
        validate.run(ask(validate__against=str(tmp_path / "other.jsonl")))
    assert "--sae-seeds" in refused.value.hint
    remember(run)
    saes = ("--sae", str(collected / "saes"), "--device", "cpu", "--run", str(run.path))
    for words, status in (
        (("--against", "nowhere"), 3),
        (("nowhere", "--against", "circuit"), 3),
        (("--against", "circuit", "--pin", "1:3"), 2),
        (("--against", "circuit", "--stability", "3"), 2),
        (("circuit", "--against", "circuit"), 0),
    ):
        done = here("validate", *saes, *words, cwd=tmp_path)
        assert (done.status, len(done.errors)) == (status, 2 * (status > 0)), (words, done.stderr)
