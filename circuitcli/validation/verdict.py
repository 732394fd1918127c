"""What a test of a circuit comes to, in one word: refuted, proposed, supported or validated.

All is about the judged error policy and ablation; of an interval the end counts that is worse for the circuit, where
there is none its value.

refuted: the circuit keeps less than a fifth of the behaviour, or is no better than a control that says that it is
    nothing special: random circuits of its own shape, another behaviour's circuit, its own features with their decoder
    shuffled (both without errors, which would make up for that).
proposed: nothing speaks against it, and too little for it: fewer than two prompts, no random circuits to compare with,
    it keeps less than half, or more is left without it than it keeps.
supported: it keeps half and more, more than is left without it and than every control.
validated: on other prompts than it was found on it keeps 80 to 120 %, and at most a fifth is left without it; its edges
    alone keep half; every ablation and error policy that was measured leaves it half; it beats another behaviour's
    circuit and as many neurons; the same nodes are found again (Jaccard at least 0.8, arXiv:2510.00845); and no rival
    without its strongest nodes is as good. What was not measured does not count for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from circuitcli.records import Record, ScoreRecord, VerdictRecord

Level = Literal["refuted", "proposed", "supported", "validated"]
# A circuit beats chance if at most this share of random circuits is as good.
CHANCE = 0.025
# Shares of the behaviour: what is too little, what is most of it, what is nearly all of it, and what is more than that.
LITTLE, HALF, MOST, TOO_MUCH = 0.2, 0.5, 0.8, 1.2
# Jaccard similarity of the nodes found on other draws of the prompts.
STABLE = 0.8

# Controls by the name of their score, in words; what a circuit must beat to be anything at all, and what is a bonus.
CONTROLS = {
    "faithfulness-random": "circuits of its shape drawn from all nodes",
    "faithfulness-random-active": "circuits of its shape drawn from active features for active ones",
    "faithfulness-control-graph": "the circuit of another behaviour",
    "faithfulness-shuffled": "its own features with the decoder's rows shuffled, without errors",
    "faithfulness-neurons": "as many neurons",
}
# Errors of a shuffled decoder would make up for it, so the circuit is compared with that without any.
SHUFFLED, WITHOUT_ERRORS = "faithfulness-shuffled", "removed"
_NEURONS = "faithfulness-neurons"
_OTHER_BEHAVIOUR = "faithfulness-control-graph"
# Similarities of the nodes that are found anew: on bootstrap samples and halves of the prompts, with SAEs of other
# seeds; and the best circuit without the strongest nodes.
STABILITIES = {"stability-bootstrap": "bootstraps", "stability-halves": "halves", "stability-seeds": "other SAEs"}
RIVAL = "faithfulness-rival"


@dataclass(frozen=True)
class Bounds:
    """A score and its 95 % interval, which is the value itself where there is none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, score: ScoreRecord) -> "Bounds":
        """Those of a record."""
        return cls(
            score.value,
            score.value if score.low is None else score.low,
            score.value if score.high is None else score.high,
        )


@dataclass(frozen=True)
class Facts:
    """What a test measured of a circuit; None for what it did not.

    controls: whether each was beaten, None where it says nothing. others: faithfulness under other error policies and
    ablations, by name. stability: similarity of the nodes found anew, by what was drawn. has_rival: whether a circuit
    without the strongest nodes is as good.
    """

    faithfulness: Bounds
    completeness: Bounds | None = None
    edges: Bounds | None = None
    n_prompts: int = 1
    is_held_out: bool = False
    controls: Mapping[str, bool | None] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    stability: Mapping[str, float] = field(default_factory=dict)
    has_rival: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """The level that a circuit reached, and why it is no lower and no higher."""

    level: Level
    why: tuple[str, ...]

    def record(self, about: Mapping[str, Any]) -> VerdictRecord:
        """As a record; ``about`` tells which circuit it is about."""
        told = {name: about[name] for name in ("graph", "graph_digest", "ablation", "errors") if name in about}
        return VerdictRecord(verdict=self.level, why=self.why, **told)


def judged_score(records: Iterable[Record]) -> ScoreRecord | None:
    """The faithfulness of the last test under the judged error policy and ablation; None if it was not measured."""
    scores = [record for record in records if isinstance(record, ScoreRecord)]
    return next((score for score in reversed(scores) if score.name == "faithfulness" and score.judged), None)


def beside(records: Iterable[Record], judged: ScoreRecord) -> dict[str, ScoreRecord]:
    """The scores under the same error policy and ablation, by name; that of a shuffled decoder is without errors."""
    return {
        record.name: record
        for record in records
        if isinstance(record, ScoreRecord)
        and (record.graph, record.ablation) == (judged.graph, judged.ablation)
        and record.errors == (WITHOUT_ERRORS if record.name == SHUFFLED else judged.errors)
    }


def is_beaten(control: ScoreRecord) -> bool | None:
    """Whether the circuit beats a control: of random circuits at most 2.5 % are as good; of another the circuit is
    surely better. None where a control says nothing: there is no other circuit of this shape."""
    if control.rank is not None and control.samples:
        return None if control.overlap == 1 else control.rank - 1 <= CHANCE * control.samples
    if control.difference is None:
        return None
    return (control.difference if control.difference_low is None else control.difference_low) > 0


def facts_of(records: Sequence[Record]) -> Facts | None:
    """What the records of a test tell; None if faithfulness was not measured."""
    judged = judged_score(records)
    if judged is None:
        return None
    found = beside(records, judged)
    bounds = {name: Bounds.of(found[name]) for name in ("completeness", "faithfulness-edges") if name in found}
    rival = found.get(RIVAL)
    return Facts(
        faithfulness=Bounds.of(judged),
        completeness=bounds.get("completeness"),
        edges=bounds.get("faithfulness-edges"),
        n_prompts=judged.n_prompts or 1,
        is_held_out=bool(judged.held_out),
        controls={name: is_beaten(found[name]) for name in CONTROLS if name in found},
        others=dict(_others(records, judged)),
        stability={name: found[name].value for name in STABILITIES if name in found},
        has_rival=None if rival is None else is_beaten(rival) is not True,
    )


def _others(records: Iterable[Record], judged: ScoreRecord) -> Iterator[tuple[str, float]]:
    """Faithfulness under other policies and ablations."""
    for record in records:
        if not isinstance(record, ScoreRecord) or record.name != "faithfulness" or record.graph != judged.graph:
            continue
        if (record.errors, record.ablation) != (judged.errors, judged.ablation):
            other = "" if record.ablation == judged.ablation else f", {record.ablation} ablation"
            yield f"errors {record.errors}{other}", record.value


def judge(facts: Facts) -> Verdict:
    """The level by the rules above, with reasons."""
    if against := [*_against(facts)]:
        return Verdict("refuted", tuple(against))
    if lacking := [*_too_little(facts)]:
        return Verdict("proposed", tuple(lacking))
    beaten = sum(value is True for value in facts.controls.values())
    kept = f"keeps {share(facts.faithfulness.value)} and beats {beaten} control{'s' if beaten > 1 else ''}"
    if missing := [*_missing(facts)]:
        return Verdict("supported", (kept, *(f"not validated: {one}" for one in missing)))
    return Verdict("validated", (f"{kept} on other prompts", "its edges too", "and it is found again"))


def _against(facts: Facts) -> Iterator[str]:
    if facts.faithfulness.high < LITTLE:
        yield f"keeps {share(facts.faithfulness.value)} of the behaviour, less than a fifth"
    for name, beats in facts.controls.items():
        if beats is False and name != _NEURONS:
            yield f"no better than {CONTROLS[name]}"


def _too_little(facts: Facts) -> Iterator[str]:
    if facts.n_prompts < 2:
        yield "tested on one prompt"
    if facts.controls.get("faithfulness-random") is None:
        yield "no random circuit of its shape was there to compare with"
    if facts.faithfulness.low < HALF:
        yield f"may keep only {share(facts.faithfulness.low)}, less than half"
    if facts.completeness is not None and facts.completeness.value > facts.faithfulness.value:
        yield "more is left without it than it keeps"


def _missing(facts: Facts) -> Iterator[str]:
    """What keeps a circuit that is supported from being validated."""
    if not facts.is_held_out:
        yield "tested on the prompts that it was found on"
    if not MOST <= facts.faithfulness.low <= facts.faithfulness.high <= TOO_MUCH:
        yield f"keeps {share(facts.faithfulness.low)} to {share(facts.faithfulness.high)}, not surely 80 to 120 %"
    if facts.completeness is None or facts.completeness.high > LITTLE:
        left = "was not measured" if facts.completeness is None else f"is up to {share(facts.completeness.high)}"
        yield f"what is left without it {left}"
    if facts.edges is None or facts.edges.low < HALF:
        yield "its edges " + ("were not tested" if facts.edges is None else f"may keep {share(facts.edges.low)} alone")
    for name, value in facts.others.items():
        if value < HALF:
            yield f"keeps {share(value)} with {name}"
    for name in (_OTHER_BEHAVIOUR, _NEURONS):
        if facts.controls.get(name) is not True:
            how = "no better than" if facts.controls.get(name) is False else "not compared with"
            yield f"{how} {CONTROLS[name]}"
    yield from _unstable(facts)


def _unstable(facts: Facts) -> Iterator[str]:
    if not facts.stability:
        yield "whether it is found again was not measured"
    for name, value in facts.stability.items():
        if value < STABLE:
            yield f"{share(value)} of its nodes are found again on {STABILITIES[name]}"
    if facts.has_rival is not False:
        yield "a rival without its strongest nodes " + ("is as good" if facts.has_rival else "was not looked for")


def unbeaten(scores: Mapping[str, ScoreRecord]) -> list[str]:
    """Controls that a circuit is no better than, in words; ``scores`` by name, as `beside` gives them."""
    return [
        f"{CONTROLS[name]} ({share(scores[name].value)})"
        for name in CONTROLS
        if name in scores and is_beaten(scores[name]) is False
    ]


def share(value: float) -> str:
    """A share of the behaviour in per cent."""
    return f"{100 * value:.0f} %".replace("-0 %", "0 %") if abs(value) < 0.005 else f"{100 * value:.0f} %"
