"""What `circuit validate` found beside scores, in sentences."""

from collections.abc import Iterable, Iterator, Sequence

from circuitcli.records import Record, SteeringRecord


def told(records: Iterable[Record]) -> Iterator[str]:
    """Sentences about steering."""
    for record in records:
        if isinstance(record, SteeringRecord):
            yield from _steering(record)


def _steering(record: SteeringRecord) -> Iterator[str]:
    scaled = ", ".join(f"{name} times {factor:g}" for name, factor in record.factors.items())
    yield f"clean:   {record.clean!r}"
    yield f"steered: {record.steered!r}"
    yield (
        f"with {scaled} the next token differs by {_mean(record.kl_steered):.3g} nats a token along the steered text, "
        f"by {_mean(record.kl_clean):.3g} along the clean one (mean KL of clean and steered)"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
