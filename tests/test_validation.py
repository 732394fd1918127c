"""Scores of circuits: their fixed points, and slow definitions."""

import math
from dataclasses import replace

import pytest
import torch
from subjects import panel_of, random_baseline, random_subject
from support import D_MODEL, D_SAE, random_sae

from circuitcli.attribution import baselines
from circuitcli.attribution.baselines import Baseline
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.taps import keep, tapped
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.schema import POLICIES
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation import scores
from circuitcli.validation import tally as tally_module
from circuitcli.validation.circuits import circuit_metric, kept_nodes
from circuitcli.validation.scores import Case, PanelCases, measure, minimality, ratio
from circuitcli.validation.tally import Shift, Tally
from circuitcli.validation.trial import Trial, scored


def live_nodes(subject, hook):
    """The active features and the errors of a clean run, at their positions."""
    first = subject.first
    active = subject.codes[hook][0].nonzero().tolist()
    errors = (NodeId(hook, None, position + first) for position in range(subject.n_spliced))
    return [*(NodeId(hook, index, position + first) for position, index in active), *errors]


def everything(subject):
    return tuple(NodeId(hook, index) for hook in subject.coders.hooks for index in [*range(D_SAE), None])


def slow_circuit_metric(subject, baseline, nodes):
    """One full forward pass; at each hook point, in order, what is not in the circuit goes to its baseline."""
    kept = set(nodes)
    first = subject.first
    callbacks = {}
    for hook, sae in subject.coders.items():

        def edit(x, hook=hook, sae=sae):
            coded = sae.code(x[:, first:])
            codes, error = coded.codes.clone(), coded.error.clone()
            for row in range(codes.shape[1]):
                for index in range(D_SAE):
                    if not {NodeId(hook, index), NodeId(hook, index, row + first)} & kept:
                        codes[0, row, index] = baseline.codes[hook][0, 0, index]
                if not {NodeId(hook, None), NodeId(hook, None, row + first)} & kept:
                    error[0, row] = baseline.errors[hook][0, 0]
            x = x.clone()
            x[:, first:] = sae.decode(codes, coded.frame) + error
            return x

        callbacks[hook] = edit
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        return float(subject.metric.value(subject.adapter.logits(subject.clean.input_ids))[0])


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
def test_a_circuit_runs_with_its_own_nodes_and_all_else_at_baseline(family):
    subject = random_subject(family, layers=(1, 2), first=1, n=5, normalisation="layer-norm")
    baseline = random_baseline(subject)
    nodes = [node for hook in subject.coders.hooks for node in live_nodes(subject, hook)[::3]]
    nodes.append(NodeId(subject.coders.hooks[1], 7))
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
    nodes = [NodeId(subject.coders.hooks[0], 3), NodeId(subject.coders.hooks[0], None)]
    kept = kept_nodes(subject, nodes)
    hook = subject.coders.hooks[0]
    assert not kept.complement().with_errors("nodes").errors[hook].any()
    assert kept.complement().with_errors("kept").errors[hook].all()
    assert not kept.complement().with_errors("removed").errors[subject.coders.hooks[1]].any()
    empty = [measure([Case(subject, baseline, tuple(nodes))], policy=policy, batch_size=4).empty for policy in POLICIES]
    assert float(empty[0]) == pytest.approx(float(empty[2])) and float(empty[0]) != pytest.approx(float(empty[1]))


def test_minimality_is_the_least_change_when_one_node_is_left_out():
    subject = random_subject("gpt2", layers=(1, 2), n=5)
    baseline = random_baseline(subject)
    nodes = tuple(live_nodes(subject, subject.coders.hooks[-1])[:6])
    case = Case(subject, baseline, nodes)
    runs = measure([case], policy="nodes", batch_size=4)
    clean, empty = float(runs.clean[0]), float(runs.empty[0])
    whole = slow_circuit_metric(subject, baseline, nodes)
    changes = {
        str(node): abs(whole - slow_circuit_metric(subject, baseline, [n for n in nodes if n != node]))
        / abs(clean - empty)
        for node in nodes
    }
    least, node = minimality([case], runs, policy="nodes", batch_size=4)
    value = least.value
    assert (
        least.low is None
        and value == pytest.approx(min(changes.values()), abs=1e-8)
        and changes[node] == pytest.approx(value, abs=1e-8)
    )


def test_the_ratio_is_of_means_over_prompts_with_an_interval_around_it():
    cases = []
    for n in (5, 6, 7, 8):
        subject = random_subject("gpt2", n=n)
        nodes = tuple(NodeId(hook, index) for hook in subject.coders.hooks for index in range(0, D_SAE, 2))
        cases.append(Case(subject, random_baseline(subject), nodes))
    runs = measure(cases, policy="kept", batch_size=4)
    score = ratio(runs.circuit, runs, bootstrap=400, seed=0)
    expected = float((runs.circuit.mean() - runs.empty.mean()) / (runs.clean.mean() - runs.empty.mean()))
    assert score.value == pytest.approx(expected) and score.low <= score.value <= score.high
    single = measure(cases[:1], policy="kept", batch_size=4)
    assert ratio(single.circuit, single, bootstrap=400, seed=0).low is None


def test_a_metric_that_nothing_changes_is_refused():
    subject = random_subject("gpt2")
    same = Baseline(subject.codes, subject.errors)
    runs = measure([Case(subject, same, ())], policy="nodes", batch_size=4)
    with pytest.raises(InputError, match="same with and without"):
        ratio(runs.circuit, runs, bootstrap=0, seed=0)


def test_an_ablation_that_leaves_nothing_to_explain_is_left_out_with_a_word_unless_all_do(caplog):
    subject = random_subject("gpt2", layers=(1,), n=4)
    nodes = everything(subject)[::2]
    settings = ValidationSettings(samples=0, minimality=False)

    def trial(baseline, **options):
        return Trial(PanelCases(panel_of(subject, baseline), nodes), settings, 0, 8, **options)

    nothing, zero = Baseline(subject.codes, subject.errors), baselines.zero(subject.coders)
    found = list(scored({"mean": trial(nothing), "zero": trial(zero, is_main=False)}))
    assert {ablation for ablation, _ in found} == {"zero"} and not any(one.facts.get("judged") for _, one in found)
    assert "no scores with mean ablation" in caplog.text and "nothing is judged" in caplog.text
    with pytest.raises(InputError, match="same with and without"):
        list(scored({"mean": trial(nothing)}))


def test_minimality_has_the_bounds_of_its_nodes_change_on_samples_of_the_prompts():
    subjects = [random_subject("gpt2", layers=(2,), n=n) for n in (4, 5, 6, 7)]
    nodes = everything(subjects[0])[::7]
    cases = [Case(subject, baselines.zero(subject.coders), nodes) for subject in subjects]
    runs = measure(cases, policy="nodes", batch_size=16)
    least, node = minimality(cases, runs, policy="nodes", batch_size=16, bootstrap=300, seed=3)
    rest = tuple(other for other in nodes if str(other) != node)
    without = measure([replace(case, nodes=rest) for case in cases], policy="nodes", batch_size=16).circuit
    draws = torch.randint(4, (300, 4), generator=torch.Generator().manual_seed(3))
    changes = torch.stack(
        [(runs.circuit - without)[draw].mean() / (runs.clean - runs.empty)[draw].mean() for draw in draws]
    )
    low, high = changes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    sizes = sorted([abs(low), abs(high)])
    assert (least.low, least.high) == pytest.approx((0.0 if low <= 0 <= high else sizes[0], sizes[1]))
    assert least.low <= least.value <= least.high


class Letters(Tokenizer):
    def __init__(self):
        pass

    def token_strings(self, ids):
        return [f"<{index}>" for index in ids]


def tally_of(cases, nodes, later=None, top=5):
    tally = Tally(nodes, later or {}, Letters(), top=top)
    for number, case in enumerate(cases):
        tally.add(case, [f"prompt {number}"])
    return tally.result()


def test_joint_ablation_recomputes_later_codes_and_lists_the_largest_changes():
    subject = random_subject("gpt2", first=1)
    zero = baselines.zero(subject.coders)
    active = subject.codes[HookPoint(0, "resid")][0].any(0).nonzero()[:, 0].tolist()
    nodes = [NodeId(HookPoint(0, "resid"), index) for index in active]
    joint = tally_of([Case(subject, zero, tuple(nodes))], nodes)
    keep = [node for node in everything(subject) if node not in nodes]
    assert joint.metric_ablated == pytest.approx(slow_circuit_metric(subject, zero, keep), abs=1e-9)
    assert (
        joint.effect == pytest.approx(float(subject.metric_clean) - joint.metric_ablated)
        and joint.standard_error is None
    )
    assert len(joint.tokens) == 5 and len(joint.features) == 5
    assert all(NodeId.parse(shift.name).hook > HookPoint(0, "resid") for shift in joint.features)
    sizes = [abs(shift.change) for shift in joint.features]
    assert sizes == sorted(sizes, reverse=True)


def test_the_effect_on_several_prompts_is_their_mean_with_its_standard_error():
    hook = HookPoint(0, "resid")
    nodes = [NodeId(hook, index) for index in range(0, D_SAE, 2)]
    subjects = [random_subject("gpt2", n=n) for n in (4, 5, 7)]
    zero = baselines.zero(subjects[0].coders)
    joint = tally_of([Case(subject, zero, tuple(nodes)) for subject in subjects], nodes)
    singles = [tally_of([Case(subject, zero, tuple(nodes))], nodes) for subject in subjects]
    effects = torch.tensor([single.effect for single in singles], dtype=torch.float64)
    assert joint.effect == pytest.approx(float(effects.mean())) and joint.effect != pytest.approx(float(effects[0]))
    assert joint.standard_error == pytest.approx(float(effects.std() / 3**0.5))
    assert [told.effect for told in joint.prompts] == pytest.approx(effects.tolist())
    strongest = {shift.name: (shift.clean, shift.ablated) for shift in joint.features}
    for name, (clean, ablated) in strongest.items():
        node = NodeId.parse(name)
        clean_each = [float(subject.codes[node.hook][0, :, node.index].max()) for subject in subjects]
        assert clean == pytest.approx(sum(clean_each) / 3) and clean != pytest.approx(ablated)


def test_an_ablation_that_overflows_is_no_effect_of_zero(monkeypatch):
    subject = random_subject("gpt2")
    case, whole = Case(subject, baselines.zero(subject.coders), ()), tally_module.without

    def overflows(*given, **named):
        return replace(whole(*given, **named), metric=torch.tensor([math.nan]))

    monkeypatch.setattr(tally_module, "without", overflows)
    with pytest.raises(InputError, match="the metric without these nodes is not finite") as caught:
        tally_of([case], [])
    assert "--dtype float32" in caught.value.hint


def test_a_circuit_that_overflows_is_told_and_not_kept(monkeypatch):
    subject = random_subject("gpt2")
    nodes = everything(subject)[:2]
    case, kept = Case(subject, baselines.zero(subject.coders), tuple(nodes)), {}

    def keep(step, make):
        kept[step] = make()
        return kept[step]

    runs = measure([case], policy="nodes", batch_size=4, keep=keep)
    assert len(kept) == 1
    monkeypatch.setattr(scores, "circuit_metric", lambda *given, **named: torch.tensor([[1.0], [math.inf]]))
    with pytest.raises(InputError, match=r"the metric with circuit less a node, nodes errors, prompt 0, .*not finite"):
        minimality([case], runs, policy="nodes", batch_size=4, keep=keep)
    with pytest.raises(InputError, match="the metric with kept errors, prompt 0 is not finite"):
        measure([case], policy="kept", batch_size=4, keep=keep)
    assert len(kept) == 1


def test_contexts_that_change_by_as_much_are_listed_in_the_order_of_the_text(monkeypatch):
    subject = random_subject("gpt2")
    case = Case(subject, baselines.zero(subject.coders), ())
    sizes = iter([[0.1], [0.5], [-0.5], [0.5, 0.2], [0.25]])
    names = iter("abcdef")

    def shifts(*_args):
        return [Shift(next(names), 0.5, 0.5 + size) for size in next(sizes)]

    monkeypatch.setattr(tally_module, "_context_shifts", shifts)
    tally = Tally((), {}, Letters(), top=3)
    monkeypatch.setattr(tally, "_run", lambda case, where, positions: None)
    for _ in range(5):
        tally.add_text(case, torch.ones(1, dtype=torch.bool))
    tally.clean = tally.ablated = [0.0]
    assert [shift.name for shift in tally.result().contexts] == ["b", "c", "d"]


def test_later_saes_are_only_looked_at_transcoders_too():
    hook, later, last = HookPoint(0, "resid"), HookPoint(2, "mlp_in"), HookPoint(2, "resid")
    subject = random_subject("gpt2", sites=("resid",), layers=(0,))
    transcoder = (
        TopKSae(SaeConfig(later, D_MODEL, D_SAE, target=HookPoint(2, "mlp")), k=5).double().requires_grad_(False)
    )
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    nodes = [NodeId(hook, index) for index in range(D_SAE)]
    zero = baselines.zero(subject.coders)
    plain = tally_of([Case(subject, zero, tuple(nodes))], nodes)
    looked = tally_of([Case(subject, zero, tuple(nodes))], nodes, {later: transcoder, last: random_sae(last)}, top=60)
    assert looked.effect == plain.effect and plain.features == ()
    assert {NodeId.parse(shift.name).hook for shift in looked.features} == {later, last}
    seen = {}
    with torch.no_grad(), tapped(subject.adapter, {later: keep(seen, later)}):
        subject.adapter.logits(subject.clean.input_ids)
    clean = transcoder.encode(seen[later])[0].amax(dim=0)
    shift = next(shift for shift in looked.features if NodeId.parse(shift.name).hook == later)
    assert shift.clean == pytest.approx(float(clean[NodeId.parse(shift.name).index]), abs=1e-9)


def test_nodes_that_the_subject_lacks_are_refused():
    subject = random_subject("gpt2", first=1)
    for node, message in (
        (NodeId(HookPoint(9, "resid"), 1), "no SAE at resid.9"),
        (NodeId(subject.coders.hooks[0], D_SAE), f"no feature {D_SAE}"),
        (NodeId(subject.coders.hooks[0], 1, 0), "position"),
        (NodeId(subject.coders.hooks[0], 1, 6), "position"),
    ):
        with pytest.raises(InputError, match=message):
            kept_nodes(subject, [node])
