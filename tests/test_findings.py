"""What stands above a picture of a test: the two lines that matter, whatever else was measured."""

import re

from test_render import head, small_graph

from circuitcli.graphs import CircuitGraph, Node
from circuitcli.records import ScoreRecord, VerdictRecord
from circuitcli.render.document import document
from circuitcli.render.drawing import draw
from circuitcli.render.findings import findings
from circuitcli.render.heading import heading, notes


def score(name: str, value: float, **fields: object) -> ScoreRecord:
    shared = {"errors": "nodes", "ablation": "mean", "graph": "circuit"}
    return ScoreRecord.model_validate({"name": name, "value": value, **shared, **fields})


MEASURED = (
    score("faithfulness", 0.5476, low=0.5012, high=0.5952, judged=True),
    score("completeness", 0.0646, low=0.0273, high=0.0981),
    score("faithfulness", 0.9, errors="kept", judged=False),
    score("completeness", 0.8, errors="kept"),
    score("faithfulness", 0.4, errors="removed", judged=False),
    score("faithfulness-random", 0.03, low=0.01, high=0.05, samples=40, rank=1, overlap=0.2),
    score("faithfulness-random", 0.7, errors="kept", samples=40, rank=1, overlap=0.2),
    score("faithfulness-random-active", 0.02, samples=40, rank=1, overlap=0.2),
    score("faithfulness-positions", 0.99),
    score("effect", 2.3, errors=None, unit="logits"),
)
VERDICT = VerdictRecord(verdict="supported", why=("keeps 55 %", "not validated: <one> draw"), graph="circuit")


def test_of_many_scores_the_judged_ones_stand_in_one_line_and_the_verdict_in_another() -> None:
    assert findings(MEASURED, VERDICT) == [
        "kept 54.8 % [50.1, 59.5] of the behaviour (random circuits 3.0 %); "
        "without the circuit 6.5 % [2.7, 9.8] is left (lower is better)",
        "verdict: supported (keeps 55 %; not validated: <one> draw)",
    ]
    assert [len(findings(MEASURED[:n])) for n in range(len(MEASURED))] == [0] + [1] * (len(MEASURED) - 1)


def test_what_was_not_measured_is_not_told_and_draws_of_the_same_nodes_are_no_control() -> None:
    alone = score("faithfulness", 1.5, judged=True)
    assert findings([alone]) == ["kept 150.0 % of the behaviour"]
    same = score("faithfulness-random", 1.5, samples=40, rank=1, overlap=1.0)
    assert "random" not in " ".join(findings([alone, same]))
    assert findings([score("effect", -0.25, unit="nats", low=-0.5, high=0.125)]) == ["effect -0.25 nats [-0.5, 0.125]"]
    assert findings([]) == []


def test_scores_without_a_judgement_are_those_that_came_first() -> None:
    older = [score("faithfulness", 0.6), score("faithfulness", 0.7, errors="kept")]
    assert findings(older) == ["kept 60.0 % of the behaviour"]


def test_the_picture_has_these_lines_only_and_the_document_every_score() -> None:
    drawing = draw(small_graph(), scores=MEASURED, verdict=VERDICT)
    told = heading(drawing).replace("&#160;", " ").replace("&#93;", "]")
    assert "kept 54.8 % [50.1, 59.5] of the behaviour" in told and "verdict: supported" in told
    assert "&lt;one&gt;" in told
    assert not re.search("faithfulness|completeness|0\\.99", told)
    content = document(drawing)
    assert len(content["scores"]) == len(MEASURED)
    assert content["verdict"] == {**VERDICT.model_dump(exclude={"kind"}, exclude_none=True), "why": list(VERDICT.why)}


def test_a_node_that_is_silent_and_has_an_effect_is_explained() -> None:
    def told(activation: float, effect: float) -> str:
        return " ".join(
            notes(draw(CircuitGraph(head(), (Node("resid.0/1@2", activation, effect, "nats"), Node("output")))))
        )

    assert "active at the mean baseline" in told(0.0, -0.5)
    assert "silent" not in told(1.0, -0.5) + told(0.0, 0.0)
