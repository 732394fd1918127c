"""What a circuit is compared with: random circuits of its own shape, and everything at its own places."""

from collections import Counter

import pytest
import torch
from subjects import random_baseline, random_subject
from support import D_SAE
from test_validation import slow_circuit_metric

from circuitcli.attribution import baselines
from circuitcli.hookpoints import NodeId
from circuitcli.validation.controls import everything_there, pools_of, random_circuits, random_faithfulness
from circuitcli.validation.scores import Case, counted, measure


def shape(nodes):
    """How many nodes there are at each hook point and position, of each kind."""
    return Counter((node.hook, node.position, node.is_error) for node in nodes)


def places_of(subject, *, has_positions=True, step=5):
    """A circuit with inactive features and errors, not at all hook points and positions, but at the last ones."""
    at = range(subject.prompts[0].last, subject.first - 1, -2) if has_positions else (None,)
    hooks = subject.coders.hooks[::-2]
    return tuple(
        NodeId(hook, index, position)
        for hook in hooks
        for position in at
        for index in [*range(position or 0, D_SAE, step), *([None] if hook == hooks[0] else [])]
    )


def draws_of(cases, circuit, *, samples=12, seed=0, by_activity=False):
    pools = pools_of(cases, circuit, by_activity=by_activity)
    return random_circuits({pool.locus: (len(pool.own), pool.indices) for pool in pools}, samples=samples, seed=seed)


def differing(cases, node):
    """The slow definition of what may be drawn for a node: what differs from its baseline in some prompt."""
    found = set()
    for case in cases:
        codes, absent = case.subject.codes[node.hook][0], case.baseline.codes[node.hook][0]
        for row in range(len(codes)):
            if node.position in (None, row + case.subject.first):
                there = absent[min(row, len(absent) - 1)]
                found |= {index for index in range(D_SAE) if codes[row, index] != there[index]}
    return found


@pytest.mark.parametrize("has_positions", [True, False])
@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_draws_have_the_circuits_size_at_each_of_its_places_and_come_from_what_differs(has_positions, baseline):
    subject = random_subject("gpt2", first=1)
    absent = random_baseline(subject) if baseline == "mean" else baselines.zero(subject.coders)
    circuit = places_of(subject, has_positions=has_positions)
    case = Case(subject, absent, circuit)
    draws = draws_of([case], circuit)
    assert all(shape(draw) == shape(circuit) and len(set(draw)) == len(circuit) for draw in draws)
    assert len(set(draws)) == len(draws), "no two draws are the same"
    for node in {node for draw in draws for node in draw if not node.is_error}:
        assert node.index in differing([case], node) or node in circuit
    assert len({node for draw in draws for node in draw}) > 1.2 * len(circuit)
    assert draws_of([case], circuit) == draws and draws_of([case], circuit, seed=1) != draws


def test_of_several_prompts_a_draw_is_one_circuit_of_what_differs_in_any():
    subjects = [random_subject("gpt2", n=n) for n in (5, 7)]
    circuit = places_of(subjects[0], has_positions=False)
    cases = [Case(subject, baselines.zero(subject.coders), circuit) for subject in subjects]
    draws = draws_of(cases, circuit)
    for node in {node for draw in draws for node in draw if not node.is_error}:
        assert node.index in differing(cases, node) or node in circuit
    assert any(
        node.index not in differing(cases[:1], node) and node not in circuit
        for draw in draws
        for node in draw
        if not node.is_error
    )


def test_active_features_are_drawn_for_active_ones_where_that_is_asked_for():
    subject = random_subject("gpt2", first=1)
    circuit = places_of(subject)
    case = Case(subject, random_baseline(subject), circuit)

    def n_active(nodes):
        codes = subject.codes
        return Counter(
            (node.hook, node.position)
            for node in nodes
            if not node.is_error and codes[node.hook][0, node.position - 1, node.index] != 0
        )

    draws = draws_of([case], circuit, by_activity=True)
    assert all(n_active(draw) == n_active(circuit) and shape(draw) == shape(circuit) for draw in draws)
    assert n_active(circuit) and any(n_active(draw) != n_active(circuit) for draw in draws_of([case], circuit))


@pytest.mark.parametrize("policy", ["nodes", "kept"])
def test_faithfulness_of_random_circuits_is_that_of_each_run_alone(policy):
    subjects = [random_subject("gpt2", layers=(1, 2), n=n) for n in (4, 5)]
    circuit = places_of(subjects[0], has_positions=False, step=3)
    cases = [Case(subject, random_baseline(subject), circuit) for subject in subjects]
    runs = measure(cases, policy=policy, batch_size=4)
    chance = random_faithfulness(cases, runs, policy=policy, samples=5, seed=3, batch_size=2)
    draws = draws_of(cases, counted(circuit, policy), samples=5, seed=3)
    errors = [NodeId(hook, None) for hook in subjects[0].coders.hooks] if policy == "kept" else []
    for value, draw in zip(chance.values.tolist(), draws, strict=True):
        each = [slow_circuit_metric(case.subject, case.baseline, [*draw, *errors]) for case in cases]
        expected = (sum(each) / 2 - float(runs.empty.mean())) / float((runs.clean - runs.empty).mean())
        assert value == pytest.approx(expected, abs=1e-8)
    own = set(counted(circuit, policy))
    assert chance.n_nodes == len(own)
    assert chance.overlap == pytest.approx(sum(len(own & set(draw)) for draw in draws) / (5 * len(own)))
    assert chance.rank(float("inf")) == 1 and chance.rank(float("-inf")) == 6
    assert chance.rank(float(chance.values.max())) == 2, "a draw that is as good stands before the circuit"


def test_everything_at_the_circuits_places_is_all_nodes_there_and_no_others():
    subject = random_subject("gpt2", layers=(1, 2), n=5, first=1)
    circuit = places_of(subject, step=9)
    case = Case(subject, random_baseline(subject), circuit)
    there = everything_there([case], policy="nodes", batch_size=4)
    places = {(node.hook, node.position) for node in circuit}
    nodes = [NodeId(hook, index, position) for hook, position in places for index in [*range(D_SAE), None]]
    assert float(there.metrics[0]) == pytest.approx(slow_circuit_metric(subject, case.baseline, nodes), abs=1e-8)
    assert there.n_nodes == sum(len(differing([case], NodeId(*place[:1], 0, place[1]))) + 1 for place in places)
    whole = Case(subject, case.baseline, tuple(NodeId(hook, 0) for hook in subject.coders.hooks))
    assert float(everything_there([whole], policy="nodes", batch_size=4).metrics[0]) == pytest.approx(
        float(subject.metric_clean), abs=1e-8
    )


@pytest.mark.parametrize("by_activity", [False, True])
def test_a_circuit_of_random_nodes_ranks_in_the_middle_of_its_controls(by_activity):
    subject = random_subject("gpt2", layers=(1, 2), n=5, first=1)
    baseline = random_baseline(subject)
    start = Case(subject, baseline, places_of(subject, step=4))
    ranks = []
    for circuit in draws_of([start], start.nodes, samples=24, seed=7, by_activity=by_activity):
        case = Case(subject, baseline, circuit)
        runs = measure([case], policy="nodes", batch_size=64)
        chance = random_faithfulness(
            [case], runs, policy="nodes", samples=19, seed=len(ranks), batch_size=64, by_activity=by_activity
        )
        ranks.append(chance.rank(float(runs.faithfulness(runs.circuit))))
    assert 7 < sum(ranks) / len(ranks) < 14 and min(ranks) < 6 and max(ranks) > 15
    assert 0.1 < sum(rank <= 5 for rank in ranks) / len(ranks) < 0.5


def test_a_circuit_that_is_all_there_is_has_no_other_to_be_compared_with():
    subject = random_subject("gpt2", layers=(1,), n=4)
    circuit = tuple(NodeId(hook, index) for hook in subject.coders.hooks for index in [*range(D_SAE), None])
    case = Case(subject, random_baseline(subject), circuit)
    runs = measure([case], policy="nodes", batch_size=4)
    chance = random_faithfulness([case], runs, policy="nodes", samples=3, seed=0, batch_size=4)
    assert chance.overlap == 1 and torch.allclose(chance.values, torch.ones(3, dtype=torch.float64))
