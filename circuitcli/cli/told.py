"""What `circuit validate` found beside scores, in sentences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from circuitcli.records import (
    AttributionsRecord,
    ChoicesRecord,
    ComparisonRecord,
    InteractionComparisonRecord,
    InteractionRecord,
    Record,
    SteeringRecord,
)
from circuitcli.validation.verdict import share

# Of the divergence with all edges, what counts as near to it.
_NEAR = 1.25


def told(records: Iterable[Record]) -> Iterator[str]:
    """Sentences about steering, questions, two graphs, and edges between two hook points."""
    for record in records:
        if isinstance(record, SteeringRecord):
            yield from _steering(record)
        elif isinstance(record, ChoicesRecord):
            yield from _choices(record)
        elif isinstance(record, ComparisonRecord):
            yield from _comparison(record)
        elif isinstance(record, InteractionRecord):
            yield from _interaction(record)
        elif isinstance(record, InteractionComparisonRecord):
            yield _sets(record)
        elif isinstance(record, AttributionsRecord):
            yield (
                f"{record.source} -> {record.target}: {record.n_nonzero:,} of {record.n_sources * record.n_targets:,} "
                f"edges have an attribution ({record.method}): {record.path}"
            )


def _steering(record: SteeringRecord) -> Iterator[str]:
    scaled = ", ".join(f"{name} times {factor:g}" for name, factor in record.factors.items())
    yield f"clean:   {record.clean!r}"
    yield f"steered: {record.steered!r}"
    yield (
        f"with {scaled} the next token differs by {_mean(record.kl_steered):.3g} nats a token along the steered text, "
        f"by {_mean(record.kl_clean):.3g} along the clean one (mean KL of clean and steered)"
    )


def _choices(record: ChoicesRecord) -> Iterator[str]:
    found = {name: value for name, value in record.model_dump().items() if isinstance(value, float)}
    yield (
        f"{_share(found, 'accuracy')}{_bounds(found, 'accuracy_')} of {record.n_questions} questions are answered "
        f"rightly, guesses {share(record.chance)}"
    )
    if record.factors is None:
        return
    scaled = ", ".join(f"{name} times {factor:g}" for name, factor in record.factors.items())
    yield (
        f"with {scaled} {_share(found, 'accuracy_scaled')}{_bounds(found, 'accuracy_scaled_')}: a difference of "
        f"{_share(found, 'difference')}{_bounds(found, 'difference_')} on the same questions, {record.n_gained} gained "
        f"and {record.n_lost} lost; the right choice has {record.probability_scaled:.3g} of the probability, "
        f"{record.probability:.3g} before"
    )


def _comparison(record: ComparisonRecord) -> Iterator[str]:
    yield (
        f"{record.graph} ({record.n_nodes} nodes, {record.n_edges} edges) and {record.against} "
        f"({record.n_nodes_against}, {record.n_edges_against}) share {share(record.nodes)} of their nodes and "
        f"{share(record.edges)} of their edges; without positions {share(record.nodes_anywhere)} and "
        f"{share(record.edges_anywhere)}"
    )
    for name, found in (("keeps", record.faithfulness), ("leaves without it", record.completeness)):
        yield (
            f"{record.graph} {name} {_share(found, 'value')}{_bounds(found, '')} of the behaviour, {record.against} "
            f"{_share(found, 'against')}{_bounds(found, 'against_')}: a difference of {_share(found, 'difference')}"
            f"{_bounds(found, 'difference_')} on the same prompts"
        )
    yield f"{record.n_removed} nodes and edges to remove and {record.n_added} to add: {record.path}"


def _sets(record: InteractionComparisonRecord) -> str:
    pair = f"all {record.n_pairs} pairs" if record.source is None else f"{record.source} -> {record.target}"
    scores = (("absolute", record.absolute), ("relative", record.relative), ("above all edges", record.relative_above))
    return f"{record.name} against {record.against}, {pair}: " + ", ".join(
        f"{name} {_improved(score)}" for name, score in scores
    )


def _improved(score: Mapping[str, float | None]) -> str:
    value, error = score.get("improvement"), score.get("error")
    if value is None:
        return "-"
    bounds = "" if error is None else f" +- {error:.3g}"
    return f"{abs(value):.4g}{bounds} % {'less' if value >= 0 else 'more'}"


def _interaction(record: InteractionRecord) -> Iterator[str]:
    pairs = zip(record.n_edges, record.kl, strict=True)
    near = next((n for n, kl in pairs if kl <= _NEAR * record.floor), record.n_edges[-1])
    near = min(near, record.n_live)
    yield (
        f"{record.source} -> {record.target}: with all edges the two SAEs leave {record.floor:.3g} nats a token (KL); "
        f"{near:,} of {record.n_live:,} live edges ({record.n_possible:,} possible) come within a quarter of that"
    )
    yield (
        f"area under the curve: absolute {_area(record.absolute)} nats times edges, relative {_area(record.relative)} "
        f"nats; above what all edges leave {_area(record.absolute_above)} and {_area(record.relative_above)}, over the "
        f"live edges alone {_area(record.live_above or {})}"
    )
    yield "the relative area is flattered by features that are never active, the absolute one by small dictionaries"


def _area(found: Mapping[str, float | None]) -> str:
    low, high = found.get("low"), found.get("high")
    bounds = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{found.get('value') or 0.0:.4g}{bounds}"


def _share(found: Mapping[str, float | None], name: str) -> str:
    return share(found.get(name) or 0.0)


def _bounds(found: Mapping[str, float | None], prefix: str) -> str:
    low, high = found.get(f"{prefix}low"), found.get(f"{prefix}high")
    return "" if low is None or high is None else f" [{share(low)}, {share(high)}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
