"""Scores in words: directions, shares below none and above all, and circuits that do not beat their controls."""

from dataclasses import replace

import pytest

from circuitcli.cli.verdict import share, verdict
from circuitcli.records import ScoreRecord
from circuitcli.validation.verdict import CONTROLS, Bounds, Facts, facts_of, judge


def scores(value=0.47, left=0.45, rank=1, samples=100, **changes):
    """The scores of a test."""
    common = {"errors": "nodes", "graph": "circuit", "n_nodes": 7, "n_prompts": 3}
    judged = {"judged": True, "metric_clean": -1.0, "metric_empty": -9.0, **changes}
    chance = {"rank": rank, "samples": samples, "overlap": 0.2}
    return [
        ScoreRecord(name="faithfulness", value=0.99, errors="kept", graph="circuit"),
        ScoreRecord(name="faithfulness", value=value, low=value - 0.1, high=value + 0.1, **common | judged),
        ScoreRecord(name="completeness", value=left, **common),
        ScoreRecord(name="faithfulness-random", value=0.07, low=-0.23, high=0.72, **common | chance),
        ScoreRecord(name="faithfulness-positions", value=0.8, **common | {"n_nodes": 1234}),
    ]


def test_scores_are_said_with_their_directions_and_beside_chance():
    first, *more = verdict(scores())
    assert first == (
        "the circuit keeps 47 % of the behaviour [37 %, 57 %]; 45 % is left without it (lower is better); "
        "matched random circuits keep 7 % [-23 %, 72 %]"
    )
    assert more == [
        "it beats circuits of its shape drawn from all nodes, which keep 7 % [-23 %, 72 %]: it is number 1 of 101 "
        "(they have 20 % of its nodes)",
        "all 1,234 nodes at the circuit's own hook points and positions keep 80 %, its 7 nodes 47 %",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 40}, "it does NOT beat circuits of its shape"),
        ({"rank": 3}, "it beats circuits of its shape"),
        ({"rank": 4}, "it does NOT beat circuits of its shape"),
        ({"rank": 2, "samples": 10}, "it does NOT beat circuits of its shape"),
        ({"value": 1.2}, "more than 100 %: what the circuit leaves out works against the behaviour"),
        ({"value": -0.2}, "less than nothing: alone, the circuit's nodes work against the behaviour"),
        ({"left": 0.6}, "more is left without the circuit than it keeps"),
        ({"left": -0.3}, "less than nothing is left: without the circuit, all else works against the behaviour"),
        ({"n_prompts": 1}, "one prompt has no interval"),
        ({"metric_clean": -9.5}, "the metric is better with all nodes at their baseline (-9) than in the model (-9.5)"),
    ],
)
def test_what_would_be_misread_is_said(changes: dict, said: str):
    assert any(line.startswith(said) for line in verdict(scores(**changes)))
    if "NOT" not in said:
        assert not any("NOT" in line for line in verdict(scores(**changes)))


def test_without_an_interval_or_controls_only_what_was_measured_is_said():
    judged = ScoreRecord(name="faithfulness", value=-0.001, errors="nodes", judged=True)
    assert verdict([judged]) == ["the circuit keeps 0 % of the behaviour"]
    assert verdict([]) == [] and verdict([ScoreRecord(name="faithfulness", value=1.0, errors="kept")]) == []


def test_a_circuit_without_any_other_of_its_shape_has_no_control():
    made = scores()
    made[3] = made[3].model_copy(update={"overlap": 1.0, "rank": 101})
    assert "no control: all circuits of its shape drawn from all nodes have the same nodes" in verdict(made)
    assert not any("matched random circuits keep" in line for line in verdict(made))


def test_the_effect_of_pins_is_said_with_its_sign():
    effect = ScoreRecord(name="effect", value=-0.25, standard_error=0.05, unit="nats", graph="pins")
    assert verdict([effect]) == ["ablating them together raises the metric by 0.25 ± 0.05 nats"]
    text = effect.model_copy(update={"value": 0.25, "n_blocks": 40, "n_active_blocks": 4, "n_tokens": 5000})
    text = ScoreRecord.model_validate(text.model_dump())
    assert verdict([text]) == [
        "ablating them together raises the cross-entropy of the run's text by 0.25 ± 0.05 nats a token, "
        "on average over 40 blocks (5,000 tokens); they are active in 4 of them"
    ]


def test_shares_are_whole_per_cents():
    assert [share(value) for value in (0.474, -0.231, 1.0, -0.001, 0.004, 2.5)] == [
        *("47 %", "-23 %", "100 %", "0 %", "0 %", "250 %")
    ]


STRONG = Facts(
    faithfulness=Bounds(0.95, 0.9, 1.02),
    completeness=Bounds(0.1, 0.05, 0.15),
    edges=Bounds(0.8, 0.7, 0.9),
    n_prompts=40,
    is_held_out=True,
    controls=dict.fromkeys(CONTROLS, True),
    others={"errors kept": 0.9},
    stability={"stability-bootstrap": 0.85},
    has_rival=False,
)


@pytest.mark.parametrize(
    ("changes", "level", "why"),
    [
        ({}, "validated", "beats 5 controls on other prompts"),
        ({"is_held_out": False}, "supported", "the prompts that it was found on"),
        ({"faithfulness": Bounds(0.9, 0.79, 1.0)}, "supported", "keeps 79 % to 100 %"),
        ({"faithfulness": Bounds(1.1, 0.9, 1.3)}, "supported", "keeps 90 % to 130 %"),
        ({"completeness": Bounds(0.15, 0.1, 0.3)}, "supported", "left without it is up to 30 %"),
        ({"completeness": None}, "supported", "left without it was not measured"),
        ({"edges": Bounds(0.6, 0.3, 0.8)}, "supported", "its edges may keep 30 % alone"),
        ({"edges": None}, "supported", "its edges were not tested"),
        ({"others": {"errors kept": 0.4}}, "supported", "keeps 40 % with errors kept"),
        (
            {"controls": dict.fromkeys(CONTROLS, True) | {"faithfulness-neurons": False}},
            "supported",
            "no better than as many neurons",
        ),
        ({"controls": {"faithfulness-random": True}}, "supported", "not compared with the circuit of another"),
        ({"stability": {"stability-halves": 0.7}}, "supported", "70 % of its nodes are found again on halves"),
        ({"stability": {}}, "supported", "found again was not measured"),
        ({"has_rival": True}, "supported", "a rival without its strongest nodes is as good"),
        ({"has_rival": None}, "supported", "was not looked for"),
        ({"n_prompts": 1}, "proposed", "one prompt"),
        ({"controls": {}}, "proposed", "no random circuit"),
        ({"controls": {"faithfulness-random": None}}, "proposed", "no random circuit"),
        ({"faithfulness": Bounds(0.7, 0.4, 0.9)}, "proposed", "may keep only 40 %, less than half"),
        ({"completeness": Bounds(1.1, 1.0, 1.2)}, "proposed", "more is left without it"),
        ({"faithfulness": Bounds(0.1, -0.1, 0.19)}, "refuted", "less than a fifth"),
        *(
            ({"controls": {name: False}}, "refuted", "no better than")
            for name in CONTROLS
            if name != "faithfulness-neurons"
        ),
    ],
)
def test_each_rule_of_the_verdict_holds_a_circuit_at_its_level(changes, level, why):
    found = judge(replace(STRONG, **changes))
    assert found.level == level and any(why in reason for reason in found.why), found


def test_the_verdict_is_taken_from_the_records_of_the_judged_policy_and_ablation_alone():
    made = scores(rank=1)
    other = made[1].model_copy(update={"ablation": "mean", "value": 0.3, "judged": None})
    facts = facts_of([*made, other])
    assert facts.faithfulness == Bounds(0.47, 0.37, 0.57) and facts.completeness == Bounds(0.45, 0.45, 0.45)
    assert facts.controls == {"faithfulness-random": True} and facts.n_prompts == 3 and not facts.is_held_out
    assert facts.others == {"errors kept": 0.99, "errors nodes, mean ablation": 0.3}
    assert facts_of(made[:1]) is None


@pytest.mark.parametrize(
    ("difference", "low", "beaten"), [(0.2, 0.1, True), (0.2, -0.1, False), (0.2, None, True), (-0.1, None, False)]
)
def test_one_other_circuit_is_beaten_only_if_the_circuit_is_surely_better(difference, low, beaten):
    high = None if low is None else 0.5
    neurons = ScoreRecord(
        name="faithfulness-neurons",
        value=0.27,
        errors="nodes",
        graph="circuit",
        n_nodes=7,
        **{"difference": difference, "difference_low": low, "difference_high": high},
    )
    said = verdict([*scores(), neurons])
    assert facts_of([*scores(), neurons]).controls["faithfulness-neurons"] is beaten
    assert said[0].startswith("no better than a control: as many neurons (27 %)") is not beaten
    assert any(
        line.startswith(f"it {'beats' if beaten else 'does NOT beat'} as many neurons (7 nodes)") for line in said
    )


def test_a_shuffled_decoder_is_compared_without_errors():
    shuffled = ScoreRecord(name="faithfulness-shuffled", value=0.3, graph="circuit", difference=-0.1, errors="removed")
    assert facts_of([*scores(), shuffled]).controls["faithfulness-shuffled"] is False
    made_up_for = shuffled.model_copy(update={"errors": "nodes"})
    assert "faithfulness-shuffled" not in facts_of([*scores(), made_up_for]).controls
    # The share that the circuit is told to keep first is with its errors.
    line = next(line for line in verdict([*scores(), shuffled]) if "shuffled" in line and "it does" in line)
    assert line.endswith("at 30 %: without errors the circuit keeps 20 %, 10 % less")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"difference": -0.2}, "it keeps 20 % less"),
        ({"difference": 0.2}, "it keeps 20 % more"),
        ({"difference": -0.2, "difference_low": -0.3, "difference_high": 0.1}, "it keeps 20 % less [-10 %, 30 %]"),
        ({"difference": 0.2, "difference_low": -0.1, "difference_high": 0.3}, "it keeps 20 % more [-10 %, 30 %]"),
    ],
)
def test_a_difference_is_said_in_the_direction_that_it_has(facts, said):
    other = ScoreRecord(name="faithfulness-neurons", value=0.3, graph="circuit", n_nodes=1, errors="nodes", **facts)
    line = next(line for line in verdict([*scores(), other]) if "as many neurons (1 node)" in line)
    assert line.endswith(f": {said}")


def test_the_first_line_names_a_control_that_is_not_beaten_and_the_last_is_the_verdict():
    made = scores(rank=40)
    record = judge(facts_of(made)).record({"graph": "circuit"})
    said = verdict([*made, record])
    assert said[0] == "no better than a control: circuits of its shape drawn from all nodes (7 %)"
    assert said[-1] == "verdict: refuted: no better than circuits of its shape drawn from all nodes"
