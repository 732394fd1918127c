"""Circuits through training: what two of them share, lifelines of features, and whether there is a behaviour at all."""

import random

import pytest
from support import adapter_of, random_ids

from circuitcli.attribution.prompts import Prompt
from circuitcli.development import behaviour
from circuitcli.development.overlap import Lifeline, lifelines, overlap, shuffled
from circuitcli.hookpoints import HookPoint, NodeId

A, B = HookPoint(0, "resid"), HookPoint(1, "resid")


def circuit(**effects: float) -> dict[NodeId, float]:
    """Nodes named a3 (feature 3 of the first hook point) and b3."""
    return {NodeId({"a": A, "b": B}[name[0]], int(name[1:])): value for name, value in effects.items()}


def test_overlap_is_of_matched_features_and_weighs_them_by_their_share_of_the_effect():
    one, other = circuit(a1=2.0, a2=-1.0, b1=1.0), circuit(a7=1.0, a8=4.0, b9=-5.0)
    # a7 is a1, b9 is b1; a8 is a feature that the first circuit has not.
    found = overlap(one, other, {A: {7: 1, 8: 5}, B: {9: 1}}, seed=0)
    assert found.jaccard == pytest.approx(2 / 4)
    # Shares .5 .25 .25 against a1 .1, a5 .4, b1 .5.
    assert found.weighted == pytest.approx((0.1 + 0.25) / (0.5 + 0.25 + 0.5 + 0.4))
    # Dealt out at random a7 or a8 is a1 in half of the cases each, and b9 has nothing else to be.
    assert found.shuffled == pytest.approx(2 / 4, abs=0.01)
    assert found.shuffled_weighted > found.weighted


def test_what_is_not_matched_is_shared_with_nothing():
    one = circuit(a1=2.0)
    assert overlap(one, one, {}, seed=0).jaccard == overlap(one, one, {A: {2: 1}}, seed=0).weighted == 0
    same = overlap(one, one, {A: {1: 1}}, seed=0)
    assert (same.jaccard, same.weighted) == (1, 1)
    nothing = overlap({}, {}, {}, seed=0)
    assert nothing.jaccard == 1


def test_shuffled_pairs_have_the_same_features_on_both_sides():
    pairs = {A: {index: index + 100 for index in range(30)}, B: {4: 2}}
    dealt = shuffled(pairs, random.Random(1))
    assert dealt != pairs and dealt[B] == {4: 2}
    assert list(dealt[A]) == list(pairs[A]) and sorted(dealt[A].values()) == sorted(pairs[A].values())


def test_lifelines_follow_matches_both_ways_and_no_feature_has_two():
    circuits = [circuit(a1=1.0), circuit(a5=1.0, b3=1.0), circuit(a9=1.0, a4=1.0)]
    steps = [{A: {1: 5, 2: 6}}, {A: {5: 9, 6: 4}, B: {3: 8}}]
    assert lifelines(circuits, steps) == [
        Lifeline(A, 0, (1, 5, 9)),
        Lifeline(A, 0, (2, 6, 4)),
        Lifeline(B, 1, (3, 8)),
    ]
    line = Lifeline(B, 1, (3, 8))
    assert [line.index_at(number) for number in range(4)] == [None, 3, 8, None]


def prompts() -> list[Prompt]:
    texts = [random_ids(length, seed=length)[0].tolist() for length in (4, 6, 4)]
    return [Prompt("x", tuple(ids), tuple(map(str, ids)), 0, target=3, foil=5) for ids in texts]


def test_metrics_of_prompts_are_those_of_each_alone_and_chance_is_frequency():
    adapter, asked = adapter_of("gpt2"), prompts()
    for metric in ("log-prob", "logit-diff", "cross-entropy"):
        together = behaviour.clean_metrics(adapter, asked, metric=metric)
        alone = [behaviour.clean_metrics(adapter, [one], metric=metric)[0] for one in asked]
        assert together == pytest.approx(alone, abs=1e-9)
    counts = {3: 7, 5: 1}
    assert behaviour.chances(asked, counts, metric="log-prob") == pytest.approx([-0.3184537] * 3)
    assert behaviour.chances(asked, counts, metric="logit-diff") == pytest.approx([1.3862944] * 3)


def test_a_behaviour_is_there_only_where_it_is_surely_better_than_chance():
    chance = [-2.0] * 6
    assert behaviour.presence([-1.0, -1.2, -0.9, -1.1, -1.0, -1.0], chance, seed=0).is_there
    unsure = behaviour.presence([-1.0, -3.5, -0.9, -3.0, -1.0, -2.5], chance, seed=0)
    assert not unsure.is_there and unsure.low < unsure.metric - unsure.chance < unsure.high
