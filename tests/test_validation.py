"""Scores of circuits: their fixed points, and slow definitions."""

import pytest
import torch
from subjects import random_baseline, random_subject
from support import D_SAE

from circuitcli.attribution import baselines
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.taps import tapped
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.validation.ablation import ablate_together
from circuitcli.validation.circuits import POLICIES, circuit_metric, kept_nodes
from circuitcli.validation.scores import Case, live_nodes, measure, minimality, random_faithfulness, ratio


def everything(subject):
    return tuple(NodeId(hook, index) for hook in subject.hooks for index in [*range(D_SAE), None])


def slow_circuit_metric(subject, baseline, nodes):
    """One full forward pass; at each hook point, in order, what is not in the circuit goes to its baseline."""
    kept = set(nodes)
    first = subject.prompt.first
    callbacks = {}
    for hook, sae in subject.saes.items():

        def edit(x, hook=hook, sae=sae):
            coded = sae.code(x[:, first:])
            codes, error = coded.codes.clone(), coded.error.clone()
            for row in range(codes.shape[1]):
                for index in range(D_SAE):
                    if not {NodeId(hook, index), NodeId(hook, index, row + first)} & kept:
                        codes[0, row, index] = baseline[hook].codes[0, 0, index]
                if not {NodeId(hook, None), NodeId(hook, None, row + first)} & kept:
                    error[0, row] = baseline[hook].error[0, 0]
            x = x.clone()
            x[:, first:] = sae.decode(codes, coded.frame) + error
            return x

        callbacks[hook] = edit
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        return float(subject.metric.value(subject.adapter.logits(subject.prompt.ids))[0])


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
def test_a_circuit_runs_with_its_own_nodes_and_all_else_at_baseline(family):
    subject = random_subject(family, layers=(1, 2), first=1, n=5, normalisation="layer-norm")
    baseline = random_baseline(subject)
    nodes = [node for hook in subject.hooks for node in live_nodes(subject, hook, has_positions=True)[::3]]
    nodes.append(NodeId(subject.hooks[1], 7))
    fast = circuit_metric(subject, baseline, [kept_nodes(subject, nodes)], batch_size=4)
    assert float(fast[0]) == pytest.approx(
        slow_circuit_metric(subject, baseline, nodes), abs=1e-8 if family != "llama" else 1e-3
    )


@pytest.mark.parametrize("first", [0, 1])
def test_the_full_circuit_is_perfectly_faithful_and_the_empty_one_not_at_all(family, first):
    subject = random_subject(family, first=first)
    baseline = random_baseline(subject)
    for policy in ("nodes", "kept"):
        full = measure([Case(subject, baseline, everything(subject))], policy=policy, batch_size=8)
        assert ratio(full.circuit, full, bootstrap=0, seed=0).value == pytest.approx(1, abs=1e-6)
        assert ratio(full.complement, full, bootstrap=0, seed=0).value == pytest.approx(0, abs=1e-6)
        empty = measure([Case(subject, baseline, ())], policy=policy, batch_size=8)
        assert ratio(empty.circuit, empty, bootstrap=0, seed=0).value == pytest.approx(0, abs=1e-6)
        assert ratio(empty.complement, empty, bootstrap=0, seed=0).value == pytest.approx(1, abs=1e-6)


def test_without_errors_even_all_features_leave_out_what_the_saes_miss():
    subject = random_subject("gpt2")
    runs = measure([Case(subject, random_baseline(subject), everything(subject))], policy="removed", batch_size=4)
    assert abs(ratio(runs.circuit, runs, bootstrap=0, seed=0).value - 1) > 1e-3


def test_errors_flip_in_the_complement_only_where_they_are_nodes():
    subject = random_subject("gpt2")
    baseline = random_baseline(subject)
    nodes = [NodeId(subject.hooks[0], 3), NodeId(subject.hooks[0], None)]
    kept = kept_nodes(subject, nodes)
    hook = subject.hooks[0]
    assert not kept.complement().with_errors("nodes").errors[hook].any()
    assert kept.complement().with_errors("kept").errors[hook].all()
    assert not kept.complement().with_errors("removed").errors[subject.hooks[1]].any()
    empty = [measure([Case(subject, baseline, tuple(nodes))], policy=policy, batch_size=4).empty for policy in POLICIES]
    assert float(empty[0]) == pytest.approx(float(empty[2])) and float(empty[0]) != pytest.approx(float(empty[1]))


def test_minimality_is_the_least_change_when_one_node_is_left_out():
    subject = random_subject("gpt2", layers=(1, 2), n=5)
    baseline = random_baseline(subject)
    nodes = tuple(live_nodes(subject, subject.hooks[-1], has_positions=True)[:6])
    case = Case(subject, baseline, nodes)
    runs = measure([case], policy="nodes", batch_size=4)
    clean, empty = float(runs.clean[0]), float(runs.empty[0])
    whole = slow_circuit_metric(subject, baseline, nodes)
    changes = {
        str(node): abs(whole - slow_circuit_metric(subject, baseline, [n for n in nodes if n != node]))
        / abs(clean - empty)
        for node in nodes
    }
    value, node = minimality([case], runs, policy="nodes", batch_size=4)
    assert value == pytest.approx(min(changes.values()), abs=1e-8) and changes[node] == pytest.approx(value, abs=1e-8)


def test_random_circuits_have_the_circuits_size_and_are_drawn_from_the_seed():
    subject = random_subject("gpt2", first=1)
    nodes = tuple(node for hook in subject.hooks[::2] for node in live_nodes(subject, hook, has_positions=True)[:4])
    case = Case(subject, random_baseline(subject), nodes)
    runs = measure([case], policy="nodes", batch_size=4)
    one, again, other = (
        random_faithfulness([case], runs, policy="nodes", samples=5, seed=seed, batch_size=3) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other) and len(one) == 5


def test_the_ratio_is_of_means_over_prompts_with_an_interval_around_it():
    cases = []
    for n in (5, 6, 7, 8):
        subject = random_subject("gpt2", n=n)
        nodes = tuple(NodeId(hook, index) for hook in subject.hooks for index in range(0, D_SAE, 2))
        cases.append(Case(subject, random_baseline(subject), nodes))
    runs = measure(cases, policy="kept", batch_size=4)
    score = ratio(runs.circuit, runs, bootstrap=400, seed=0)
    expected = float((runs.circuit.mean() - runs.empty.mean()) / (runs.clean.mean() - runs.empty.mean()))
    assert score.value == pytest.approx(expected) and score.low <= score.value <= score.high
    single = measure(cases[:1], policy="kept", batch_size=4)
    assert ratio(single.circuit, single, bootstrap=400, seed=0).low is None


def test_a_metric_that_nothing_changes_is_refused():
    subject = random_subject("gpt2")
    same = {hook: baselines.Absent(part.codes, part.error) for hook, part in subject.coded.items()}
    runs = measure([Case(subject, same, ())], policy="nodes", batch_size=4)
    with pytest.raises(InputError, match="same with and without"):
        ratio(runs.circuit, runs, bootstrap=0, seed=0)


class Letters(Tokenizer):
    def __init__(self):
        pass

    def token_strings(self, ids):
        return [f"<{index}>" for index in ids]


def test_joint_ablation_recomputes_later_codes_and_lists_the_largest_changes():
    subject = random_subject("gpt2", first=1)
    zero = baselines.zero(subject.saes)
    active = subject.coded[HookPoint(0, "resid")].codes[0].any(0).nonzero()[:, 0].tolist()
    nodes = [NodeId(HookPoint(0, "resid"), index) for index in active]
    joint = ablate_together(subject, nodes, zero, tokenizer=Letters(), top=5)
    keep = [node for node in everything(subject) if node not in nodes]
    assert joint.metric_ablated == pytest.approx(slow_circuit_metric(subject, zero, keep), abs=1e-9)
    assert joint.effect == pytest.approx(subject.metric_clean - joint.metric_ablated)
    assert len(joint.tokens) == 5 and len(joint.features) == 5
    assert all(NodeId.parse(shift.name).hook > HookPoint(0, "resid") for shift in joint.features)
    sizes = [abs(shift.change) for shift in joint.features]
    assert sizes == sorted(sizes, reverse=True)


def test_nodes_that_the_subject_lacks_are_refused():
    subject = random_subject("gpt2", first=1)
    for node, message in (
        (NodeId(HookPoint(9, "resid"), 1), "no SAE at resid.9"),
        (NodeId(subject.hooks[0], D_SAE), f"no feature {D_SAE}"),
        (NodeId(subject.hooks[0], 1, 0), "position"),
        (NodeId(subject.hooks[0], 1, 6), "position"),
    ):
        with pytest.raises(InputError, match=message):
            kept_nodes(subject, [node])
