"""What a circuit is compared with beside random ones, rankings of all nodes, and the areas of curves."""

import math
from itertools import pairwise

import pytest
import torch
from subjects import mixed_subject, panel_of, random_baseline, random_subject
from support import D_MODEL, adapter_of, random_sae
from test_edge_faithfulness import some_nodes

from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.gradients import node_effects
from circuitcli.attribution.subject import code_run
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.partial import block_pass
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation import curves, recoded
from circuitcli.validation.circuits import kept_nodes
from circuitcli.validation.others import Means, Others
from circuitcli.validation.ranking import Ranking, positions_of
from circuitcli.validation.scores import PanelCases, Resamples, Runs, anew, counted
from circuitcli.validation.trial import Trial

ATP = GraphSettings(method="atp")


def means_of(subject, nodes, **options):
    return Means(lambda coders: BaselineRule("zero", coders), ATP, tuple(nodes), **options)


@pytest.mark.parametrize("mix", ["full", "clt-skip", "context"])
def test_a_shuffled_decoder_exchanges_directions_and_neither_codes_nor_activations(mix):
    if mix == "context":
        subject = random_subject("gpt2", layers=(1,), sites=("resid",), n=4, normalisation="context")
    else:
        subject = mixed_subject("gpt2", mix, n=4)
    coders = recoded.shuffled(subject.coders, seed=1)
    run = code_run(coders, subject.clean.activations, first=subject.first)
    for hook, coder in subject.coders.items():
        torch.testing.assert_close(run.codes[hook], subject.codes[hook], rtol=0, atol=0)
        for place in coder.writes:
            own, theirs = coder.decoder(place), coders[hook].decoder(place)
            assert not torch.equal(own, theirs)
            assert {tuple(row) for row in own.tolist()} == {tuple(row) for row in theirs.tolist()}
            torch.testing.assert_close(coders[hook].decoder_bias(place), coder.decoder_bias(place), rtol=0, atol=0)
        pairs = [(coder.decoder(place), coders[hook].decoder(place)) for place in coder.writes]
        orders = [(own[:, None] == theirs[None]).all(-1).int().argmax(0) for own, theirs in pairs]
        assert all(torch.equal(order, orders[0]) for order in orders), "all decoders of a feature go together"
    for place, error in run.errors.items():
        assert float((error - subject.errors[place]).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama", "gemma2"])
def test_neurons_add_up_to_what_the_model_computes(family):
    adapter = adapter_of(family)
    places = [HookPoint(0, "attn"), HookPoint(1, "mlp"), HookPoint(1, "resid"), HookPoint(2, "mlp")]
    coders = recoded.neurons(adapter, Coders.of(random_sae(hook) for hook in places))
    assert coders.written == tuple(places)
    subject = random_subject(family, n=4)
    run = block_pass(adapter, subject.clean.input_ids, None, coders.hooks)
    coded = code_run(coders, run.activations, first=0)
    for place in places:
        assert float(coded.errors[place].abs().max()) < 1e-10
    # Where the output of the MLP is normed as a whole its neurons do not add up, so that dimensions stand for them.
    is_mlp = coders.writers(HookPoint(1, "mlp"))[0].d_sae > D_MODEL
    assert is_mlp is (family != "gemma2")


@pytest.mark.parametrize(("positions", "n_texts"), [("sum", 1), ("all", 2), ("last", 1)])
def test_all_nodes_are_ranked_by_the_size_of_their_mean_effect(positions, n_texts):
    subject = mixed_subject("gpt2", "clt-resid", n=4, n_texts=n_texts)
    baseline = random_baseline(subject)
    panel = panel_of(subject, baseline, positions=positions)
    ranking = Ranking.of(panel, ATP, panel.positions)
    effects = node_effects(subject, baseline, method="atp", steps=1, batch_size=8)
    sizes = {}
    for hook, own in effects.items():
        places = [(None, own.features, hook), *((e, own.errors[e][..., None], e) for e in own.errors)]
        for error, values, name in places:
            mean = values.mean(dim=0)
            grouped = {"sum": mean.sum(0, keepdim=True), "all": mean, "last": mean[-1:]}[positions]
            for group, row in enumerate(grouped):
                for index, value in enumerate(row.tolist()):
                    sizes[NodeId(name, None if error else index, panel.positions.names[group])] = abs(value)
    live = {node: size for node, size in sizes.items() if size > 0}
    assert len(ranking) == len(live)
    expected = sorted(live, key=lambda node: -live[node])
    for count in (1, 7, len(live) // 2):
        found = ranking.nodes(count)
        assert {*found} == {*expected[:count]} and len(found) == count
        kept, slow = ranking.kept(subject, count), kept_nodes(subject, found)
        for hook in subject.coders:
            torch.testing.assert_close(kept.features[hook], slow.features[hook])
        for hook in subject.coders.written:
            torch.testing.assert_close(kept.errors[hook], slow.errors[hook])
    assert len(ranking.features) == sum(not node.is_error for node in live)


def test_nodes_are_ranked_at_positions_such_as_the_circuit_has():
    subject = random_subject("gpt2", layers=(1,), n=5, first=1)
    hook, prompts = HookPoint(1, "resid"), subject.prompts
    for position, kind in ((None, "sum"), (2, "all"), (4, "last"), ("last", "last")):
        assert positions_of([NodeId(hook, 3, position)], prompts).kind == kind


def test_areas_of_a_curve_are_those_of_its_closed_form():
    """Faithfulness of twice the share: below 1 up to a half, above it from there on."""
    counts, total = [1, 250, 500, 750, 1000], 1000
    shares = torch.tensor(counts, dtype=torch.float64) / total
    runs = Runs(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.0, 0.3, 0.2)))
    about = {"of": "nodes", "ranked": "all", "counts": counts, "total": total}
    made = curves.curve(2 * shares[:, None], runs, Resamples(1, bootstrap=0, seed=0), **about)
    assert made.linear.cpr.value == pytest.approx(1 - 1e-6) and made.linear.best == pytest.approx(0.999)
    # Trapezoids: from .998 to .5 over .249, to 0 over .25, to .5 over .25, to 1 over .25.
    assert made.linear.cmd.value == pytest.approx(0.249 * 0.749 + 0.25 * 0.25 + 0.25 * 0.25 + 0.25 * 0.75)
    assert made.logarithmic.best == pytest.approx(math.log(1000))
    log = [math.log(b / a) for a, b in pairwise(counts)]
    assert made.logarithmic.cpr.value == pytest.approx(
        sum(width * (a + b) for width, a, b in zip(log, shares[:-1].tolist(), shares[1:].tolist(), strict=True))
    )
    record = made.record({"graph": "g"})
    assert (record.largest, record.largest_count, record.low) == (2.0, 1000, None)
    perfect = curves.curve(torch.ones(5, 1).double(), runs, Resamples(1, bootstrap=0, seed=0), **about)
    for area in (perfect.linear, perfect.logarithmic):
        assert area.cmd.value == 0 and area.cpr.value == pytest.approx(area.best)


@pytest.mark.parametrize(
    ("total", "counts"), [(0, []), (1, [1]), (5, [1, 2, 5]), (1000, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])]
)
def test_a_curve_has_the_sizes_of_mib_as_far_as_they_differ(total, counts):
    assert curves.sizes(total) == counts


def test_curves_end_in_the_circuit_itself_in_its_edges_and_in_the_model():
    subject = mixed_subject("gpt2", "clt-resid", n=4)
    baseline, nodes = random_baseline(subject), some_nodes(subject)
    edges = [(node, None) for node in nodes]
    settings = ValidationSettings(samples=0, minimality=False, curve="all")
    cases = PanelCases(panel_of(subject, baseline), nodes)
    trial = Trial(cases, settings, 0, 8, edges=edges, means=means_of(subject, nodes))
    found = {(curve.of, curve.ranked): curve for curve in trial.faithfulness_curves()}
    scores = {(one.name, one.policy): one.score.value for one in trial.measured()}
    assert found["nodes", "graph"].points[-1].value == pytest.approx(scores["faithfulness", "nodes"])
    assert found["edges", "graph"].points[-1].value == pytest.approx(scores["faithfulness-edges", "nodes"])
    assert found["nodes", "all"].points[-1].value == pytest.approx(1)
    assert found["nodes", "all"].total > 10 * len(nodes) and found["nodes", "graph"].total == len(nodes)


def test_others_are_run_as_the_circuit_and_a_circuit_does_not_beat_itself():
    subject = random_subject("gpt2", layers=(0, 2), sites=("mlp", "resid"), n=4)
    rule, nodes = BaselineRule("zero", subject.coders), some_nodes(subject)
    cases = PanelCases(panel_of(subject, rule(subject, (0,))), nodes)
    others = Others(cases, means_of(subject, nodes), "nodes", 0, 8, anew)
    settings = ValidationSettings(samples=0, minimality=False, basis="neurons")
    trial = Trial(cases, settings, 0, 8, means=means_of(subject, nodes, control=tuple(nodes)))
    scores = {(one.name, one.policy): one for one in trial.measured()}
    found = {name: one for (name, policy), one in scores.items() if policy == "nodes" or name.endswith("shuffled")}
    own = found["faithfulness"].score.value
    assert found["faithfulness-control-graph"].score.value == pytest.approx(own)
    assert found["faithfulness-control-graph"].facts["difference"] == pytest.approx(0)
    assert found["faithfulness-control-graph"].facts["overlap"] == 1
    for name, other in (("faithfulness-neurons", others.neurons()), ("faithfulness-shuffled", others.shuffled())):
        runs = other.runs
        value = float((runs.circuit - runs.empty).mean() / (runs.clean - runs.empty).mean())
        policy = "removed" if name == "faithfulness-shuffled" else "nodes"
        assert found[name].score.value == pytest.approx(value) and len(other.nodes) == len(counted(nodes, policy))
        assert found[name].policy == policy
        own = scores["faithfulness", policy].score.value
        assert found[name].facts["difference"] == pytest.approx(own - value)
    assert all(node.index is not None for node in others.neurons().nodes)


def test_neurons_that_were_found_are_not_found_again_by_a_test_that_goes_on():
    subject = random_subject("gpt2", layers=(1,), sites=("mlp",), n=4)
    rule, nodes = BaselineRule("zero", subject.coders), some_nodes(subject)
    kept = {}

    def keep(step, make):
        return kept[step] if step in kept else kept.setdefault(step, make())

    cases = PanelCases(panel_of(subject, rule(subject, (0,))), nodes)
    first = Others(cases, means_of(subject, nodes), "nodes", 0, 8, keep).neurons()
    broken = means_of(subject, nodes)
    again = Others(cases, broken, "nodes", 0, 8, lambda step, make: kept[step]).neurons()
    assert first.nodes == again.nodes and torch.equal(first.runs.circuit, again.runs.circuit)
    assert {node.hook for node in first.nodes} == {HookPoint(1, "mlp_in")}
