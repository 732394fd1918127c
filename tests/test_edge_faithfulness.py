"""Faithfulness of edges: one full pass for each node as the definition says, and what it comes to at its ends."""

import random

import pytest
import torch
from subjects import mixed_subject, random_baseline, random_subject
from support import D_SAE
from test_coders import EXACT, PlainRun

from circuitcli.attribution.edges import ends_of, sources_of
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.schema import POLICIES
from circuitcli.validation.circuits import circuit_metric, kept_nodes
from circuitcli.validation.edges import edge_metric, every_edge

PAIRS = [
    *(("gpt2", mix) for mix in ("full", "clt-skip", "attention")),
    *(("neox-parallel", "clt-resid"), ("llama", "gaps"), ("gemma2", "transcoders")),
]


def some_nodes(subject, n=2, seed=0):
    """Active features and an error of each hook point, at positions and over all of them."""
    chosen, generator = [], random.Random(seed)
    for hook in subject.coders.hooks:
        if hook in subject.coders:
            places = subject.codes[hook][0].nonzero().tolist()
            chosen += [NodeId(hook, i, p + subject.first) for p, i in generator.sample(places, min(n, len(places)))]
            chosen.append(NodeId(hook, generator.randrange(D_SAE)))
        if subject.coders.writers(hook):
            chosen.append(NodeId(hook, None, generator.choice([None, subject.first + 1])))
    return list(dict.fromkeys(chosen))


def everything(subject):
    features = [NodeId(hook, index) for hook in subject.coders for index in range(D_SAE)]
    return [*features, *(NodeId(hook, None) for hook in subject.coders.written)]


def in_order(coders, nodes):
    late = [not node.is_error and coders[node.hook].is_transcoder for node in nodes]
    return [node for node, _ in sorted(zip(nodes, late, strict=True), key=lambda pair: (pair[0].hook.order, pair[1]))]


def slow_edge_metric(subject, baseline, nodes, edges, policy):
    """The definition for one text: a full pass for each node, with what its kept sources are in the circuit."""
    values, first = {}, subject.first
    nodes = [node for node in nodes if policy == "nodes" or not node.is_error]

    def kept(hook, own, target, *, is_error):
        absent = (baseline.errors if is_error else baseline.codes)[hook].expand_as(own)
        mixed = own.clone() if is_error and policy == "kept" else absent.clone()
        for node in nodes:
            if (node.hook, node.is_error) == (hook, is_error) and (node, target) in edges and node in values:
                place = slice(None) if node.position is None else node.position - first
                index = (0, place) if is_error else (0, place, node.index)
                mixed[index] = values[node][index]
        return mixed

    def run(target):
        seen = {}

        def codes(hook, own):
            seen[hook, False] = own
            return kept(hook, own, target, is_error=False)

        def errors(hook, own):
            seen[hook, True] = own
            return kept(hook, own, target, is_error=True)

        return float(PlainRun(subject, codes, errors).metric()[0]), seen

    for node in in_order(subject.coders, nodes):
        values[node] = run(node)[1][node.hook, node.is_error]
    return run(None)[0]


def thinned(edges, share=0.4, seed=1):
    generator = random.Random(seed)
    return [edge for edge in edges if generator.random() < share]


@pytest.mark.parametrize(
    ("family", "mix", "policy"),
    [
        *(("gpt2", "full", "nodes"), ("neox-parallel", "clt-skip", "nodes"), ("llama", "attention", "nodes")),
        *(("gpt2", "clt-skip", "kept"), ("gpt2", "clt-resid", "removed")),
    ],
)
def test_with_some_edges_each_node_is_what_a_pass_of_its_own_gives(family, mix, policy):
    subject = mixed_subject(family, mix, n=4)
    baseline, nodes = random_baseline(subject), some_nodes(subject)
    edges = thinned(every_edge(subject.coders, nodes))
    fast = edge_metric(subject, baseline, nodes, edges, policy=policy, batch_size=5)
    slow = slow_edge_metric(subject, baseline, nodes, set(edges), policy)
    assert float(fast[0]) == pytest.approx(slow, abs=1e-8 if family in EXACT else 1e-3)
    all_there = edge_metric(subject, baseline, nodes, every_edge(subject.coders, nodes), policy=policy, batch_size=5)
    assert float(all_there[0]) != pytest.approx(slow, abs=1e-4), "edges matter here"


@pytest.mark.parametrize(("family", "mix"), PAIRS)
def test_with_every_edge_it_is_the_circuit_of_its_nodes_and_without_any_the_empty_one(family, mix):
    """By induction along the hook points: all runs have the same codes and errors, which are those of the circuit's."""
    subject = mixed_subject(family, mix, n=4, n_texts=2)
    baseline, nodes = random_baseline(subject), some_nodes(subject)
    tolerance = 1e-8 if family in EXACT else 1e-3
    for policy in POLICIES:
        kept = [kept_nodes(subject, chosen).with_errors(policy) for chosen in (nodes, ())]
        circuit, empty = circuit_metric(subject, baseline, kept, batch_size=9)
        options = {"policy": policy, "batch_size": 9}
        whole = edge_metric(subject, baseline, nodes, every_edge(subject.coders, nodes), **options)
        none = edge_metric(subject, baseline, nodes, (), **options)
        torch.testing.assert_close(whole, circuit, rtol=0, atol=tolerance)
        torch.testing.assert_close(none, empty, rtol=0, atol=tolerance)
        assert float((circuit - empty).abs().max()) > 1e-4


@pytest.mark.parametrize(("family", "mix"), [("gpt2", "full"), ("qwen3", "clt")])
def test_with_all_nodes_and_edges_it_is_the_models_own(family, mix):
    subject = mixed_subject(family, mix, n=3)
    nodes = everything(subject)
    edges = every_edge(subject.coders, nodes)
    found = edge_metric(subject, random_baseline(subject), nodes, edges, policy="nodes", batch_size=4)
    assert float(found[0]) == pytest.approx(float(subject.metric_clean[0]), abs=1e-8 if family in EXACT else 1e-3)


def test_edges_without_a_direct_path_do_nothing():
    """Where no coder normalises: what the whole stream goes through is set to the values of its own kept nodes."""
    subject = random_subject("gpt2", n=4, first=1)
    baseline, nodes = random_baseline(subject), some_nodes(subject)
    edges = every_edge(subject.coders, nodes)
    near = {}
    for target in (*nodes, None):
        ends = None if target is None else ends_of(subject.coders, target.hook, is_error=target.is_error)
        near[target] = sources_of(subject.coders, ends)
    direct = [(source, target) for source, target in edges if source.hook in near[target]]
    assert len(direct) < 0.7 * len(edges)
    options = {"policy": "nodes", "batch_size": 9}
    whole, part = (edge_metric(subject, baseline, nodes, chosen, **options) for chosen in (edges, direct))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_several_texts_and_any_batch_give_what_each_text_alone_gives(batch_size):
    both = mixed_subject("gpt2", "clt-resid", n=4, n_texts=2)
    baseline = random_baseline(both)
    nodes = [NodeId(hook, index) for hook in both.coders for index in range(0, D_SAE, 9)]
    nodes.append(NodeId(HookPoint(1, "mlp"), None, 2))
    edges = thinned(every_edge(both.coders, nodes))
    together = edge_metric(both, baseline, nodes, edges, policy="nodes", batch_size=batch_size)
    alone = slow_edge_metric(mixed_subject("gpt2", "clt-resid", n=4), baseline, nodes, set(edges), "nodes")
    assert float(together[0]) == pytest.approx(alone, abs=1e-8)
    assert abs(float(together[1] - together[0])) > 1e-4
