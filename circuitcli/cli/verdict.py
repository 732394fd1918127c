"""Scores in words: what a circuit keeps, what is left without it, and whether it beats its controls."""

from collections.abc import Iterable, Iterator, Sequence

from circuitcli.cli.stability import told_stability
from circuitcli.records import CurveRecord, Record, ScoreRecord, VerdictRecord
from circuitcli.validation.verdict import CONTROLS, SHUFFLED, is_beaten, judged_score, share, unbeaten
from circuitcli.validation.verdict import beside as scores_beside

# What a share of the behaviour has to be, to be told as none or all of it.
_NEAR = 0.005


def verdict(records: Iterable[Record]) -> list[str]:
    """Sentences about the scores of the last test; none if faithfulness was not measured.

    The first says so if the circuit is no better than a control; the last is the verdict.
    """
    made = list(records)
    judged = judged_score(made)
    if judged is None:
        return list(_of_pins([record for record in made if isinstance(record, ScoreRecord)]))
    found = scores_beside(made, judged)
    first = [f"no better than a control: {'; '.join(names)}"] if (names := unbeaten(found)) else []
    verdicts = [record for record in made if isinstance(record, VerdictRecord)]
    last = [f"verdict: {verdicts[-1].verdict}: {'; '.join(verdicts[-1].why)}"] if verdicts else []
    return [
        *first,
        _kept(judged, found),
        *_edges(found),
        *_remarks(judged, found),
        *_controls(judged, found),
        *(_curve(record) for record in made if isinstance(record, CurveRecord)),
        *told_stability(made),
        *last,
    ]


def _of_pins(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """What ablating features does to the metric; on the run's text that is minus the cross-entropy."""
    for score in scores:
        if score.name != "effect":
            continue
        error = "" if score.standard_error is None else f" ± {score.standard_error:.2g}"
        size = f"{abs(score.value):.4g}{error} {score.unit or ''}".rstrip()
        if score.n_blocks is None:
            yield f"ablating them together {'lowers' if score.value > 0 else 'raises'} the metric by {size}"
            continue
        way = "raises" if score.value > 0 else "lowers"
        tokens, active = score.n_tokens or 0, score.n_active_blocks or 0
        yield (
            f"ablating them together {way} the cross-entropy of the run's text by {size} a token, on average over "
            f"{score.n_blocks:,} blocks ({tokens:,} tokens); they are active in {active:,} of them"
        )


def _kept(judged: ScoreRecord, beside: dict[str, ScoreRecord]) -> str:
    parts = [f"the circuit keeps {share(judged.value)} of the behaviour{_interval(judged)}"]
    if (left := beside.get("completeness")) is not None:
        parts.append(f"{share(left.value)} is left without it{_interval(left)} (lower is better)")
    # Random circuits of the same nodes are no control, which is said further down.
    if (chance := beside.get("faithfulness-random")) is not None and is_beaten(chance) is not None:
        parts.append(f"matched random circuits keep {share(chance.value)}{_interval(chance)}")
    return "; ".join(parts)


def _edges(beside: dict[str, ScoreRecord]) -> Iterator[str]:
    if (edges := beside.get("faithfulness-edges")) is not None:
        keep = "one edge alone keeps" if edges.n_edges == 1 else f"{edges.n_edges:,} edges alone keep"
        yield f"its {keep} {share(edges.value)}{_interval(edges)}"


def _curve(curve: CurveRecord) -> str:
    """The areas of a curve, that which says most first."""
    what = f"the graph's {curve.total:,} {curve.of}" if curve.ranked == "graph" else f"all {curve.total:,} {curve.of}"
    most = f"the most that a circuit of it keeps is {share(curve.largest)}, with {curve.largest_count:,}"
    return (
        f"curve over {what}: CMD {curve.cmd:.3g}{_bounds(curve.cmd_low, curve.cmd_high)} (0 is best), by logarithm "
        f"{curve.cmd_log:.3g}; CPR {curve.cpr:.3g} ({curve.best_cpr:.3g} without over- or undershooting), by logarithm "
        f"{curve.cpr_log:.3g} ({curve.best_cpr_log:.3g}); {most}"
    )


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"


def _remarks(judged: ScoreRecord, beside: dict[str, ScoreRecord]) -> Iterator[str]:
    """What shares below none and above all of the behaviour mean, and what there was to keep."""
    clean, empty = judged.metric_clean, judged.metric_empty
    if clean is not None and empty is not None and clean < empty:
        yield (
            f"the metric is better with all nodes at their baseline ({empty:.3g}) than in the model ({clean:.3g}): "
            "shares are of what the nodes take away"
        )
    if judged.value > 1 + _NEAR:
        yield "more than 100 %: what the circuit leaves out works against the behaviour"
    elif judged.value < -_NEAR:
        yield "less than nothing: alone, the circuit's nodes work against the behaviour"
    left = beside.get("completeness")
    if left is not None and left.value > judged.value:
        yield "more is left without the circuit than it keeps: most of the behaviour runs elsewhere"
    if left is not None and left.value < -_NEAR:
        yield "less than nothing is left: without the circuit, all else works against the behaviour"
    if judged.n_prompts == 1:
        yield "one prompt has no interval; --prompts FILE tests on more"


def _controls(judged: ScoreRecord, beside: dict[str, ScoreRecord]) -> Iterator[str]:
    for name, control in CONTROLS.items():
        if (score := beside.get(name)) is None:
            continue
        if score.rank is not None and score.samples:
            yield _rank(score, control)
        elif score.difference is not None:
            yield _difference(score, control)
    there = beside.get("faithfulness-positions")
    if there is not None and there.value < 1 - _NEAR:
        yield (
            f"all {there.n_nodes:,} nodes at the circuit's own hook points and positions keep {share(there.value)}, "
            f"its {_nodes(judged.n_nodes)} {share(judged.value)}"
        )


def _rank(chance: ScoreRecord, drawn: str) -> str:
    """Whether the circuit beats a control. A circuit that does not is said not to."""
    rank, samples = chance.rank or 1, chance.samples or 1
    if is_beaten(chance) is None:
        return f"no control: all {drawn} have the same nodes"
    shared = "" if chance.overlap is None else f" (they have {share(chance.overlap)} of its nodes)"
    return (
        f"it {_beats(chance)} {drawn}, which keep {share(chance.value)}{_interval(chance)}: "
        f"it is number {rank} of {samples + 1}{shared}"
    )


def _difference(score: ScoreRecord, control: str) -> str:
    """The same of one other circuit."""
    nodes = "" if score.n_nodes is None else f" ({_nodes(score.n_nodes)})"
    # The circuit without errors keeps another share than that which was told first.
    alike = f"without errors the circuit keeps {share(score.value + (score.difference or 0.0))}, "
    kept = alike if score.name == SHUFFLED else "it keeps "
    return f"it {_beats(score)} {control}{nodes}, at {share(score.value)}{_interval(score)}: {kept}{_more(score)}"


def _more(score: ScoreRecord) -> str:
    """How much more, or less, the circuit keeps than another."""
    difference, low, high = score.difference or 0.0, score.difference_low, score.difference_high
    sign, word = (-1, "less") if difference < 0 else (1, "more")
    bounds = "" if low is None or high is None else [share(end) for end in sorted((sign * low, sign * high))]
    return f"{share(abs(difference))} {word}{f' [{bounds[0]}, {bounds[1]}]' if bounds else ''}"


def _nodes(count: int | None) -> str:
    return "1 node" if count == 1 else f"{count or 0:,} nodes"


def _beats(score: ScoreRecord) -> str:
    return "beats" if is_beaten(score) else "does NOT beat"


def _interval(score: ScoreRecord) -> str:
    if score.low is None or score.high is None:
        return ""
    return f" [{share(score.low)}, {share(score.high)}]"
