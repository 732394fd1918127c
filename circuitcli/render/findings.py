"""What a test of a circuit came to, in the two lines that matter: what it keeps, beside chance, and the verdict.

All other scores are in the JSON, in the page and in the report of `circuit validate`.
"""

from collections.abc import Sequence

from circuitcli.records import ScoreRecord, VerdictRecord
from circuitcli.render.text import number, percent, visible


def findings(scores: Sequence[ScoreRecord], verdict: VerdictRecord | None = None) -> list[str]:
    """Lines of plain text; where faithfulness was not measured, the first score; nothing without a test."""
    judged = judged_score(scores)
    lines = [*([_kept(judged, scores)] if judged is not None else [_told(score) for score in scores[:1]])]
    if verdict is not None:
        lines.append(f"verdict: {verdict.verdict}" + (f" ({visible('; '.join(verdict.why))})" if verdict.why else ""))
    return lines


def judged_score(scores: Sequence[ScoreRecord]) -> ScoreRecord | None:
    """The faithfulness that the verdict is about: the last that is judged, else the first."""
    found = [score for score in scores if score.name == "faithfulness"]
    return next((score for score in reversed(found) if score.judged), found[0] if found else None)


def _kept(judged: ScoreRecord, scores: Sequence[ScoreRecord]) -> str:
    beside = {
        score.name: score
        for score in scores
        if (score.graph, score.ablation, score.errors) == (judged.graph, judged.ablation, judged.errors)
    }
    chance, left = beside.get("faithfulness-random"), beside.get("completeness")
    # Random circuits that all have the circuit's own nodes are no control.
    control = "" if chance is None or chance.overlap == 1 else f" (random circuits {percent(chance.value)})"
    rest = "" if left is None else f"; without the circuit {_share(left)} is left (lower is better)"
    return f"kept {_share(judged)} of the behaviour{control}{rest}"


def _share(score: ScoreRecord) -> str:
    told = percent(score.value)
    if score.low is None or score.high is None:
        return told
    return f"{told} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _told(score: ScoreRecord) -> str:
    interval = "" if score.low is None or score.high is None else f" [{number(score.low)}, {number(score.high)}]"
    unit = "" if score.unit in (None, "ratio") else f" {score.unit}"
    return f"{visible(score.name)} {number(score.value)}{unit}{interval}"
