"""Scores in words: directions, shares below none and above all, and circuits that do not beat their controls."""

import pytest

from circuitcli.cli.verdict import share, verdict
from circuitcli.records import ScoreRecord


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
