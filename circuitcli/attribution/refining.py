"""Integrals of gradients along a path in as many steps as they need, and more of them where the metric turns.

The midpoint rule on equal parts of the path comes first. Where its sum misses what the metric changes by from end to
end, the metric at the ends of the parts tells which of them miss how much, and those are parted in three, again and
again: a unit that saturates within a thousandth of the path takes some steps more there, and not a thousand everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.paths import Gradients, GroupPath, Point, midpoints

# Equal parts to begin with, and parts of one text that are never exceeded.
FIRST_STEPS, MOST_STEPS = 5, 405
# Shares of a path below this are no numbers of their own in single precision.
_NARROWEST = 1e-6
# What each part may miss of the tolerance: half of it by its width, and some however narrow it is.
_BY_WIDTH, _AT_LEAST = 0.5, 1 / 40


@dataclass(frozen=True)
class Integral:
    """Mean gradients over the path by written hook point, what they miss of the metric's change in each text, and how
    many steps each text took."""

    gradients: Gradients
    gap: Float[Tensor, " text"]
    steps: Sequence[int]


@dataclass(frozen=True)
class _Part:
    """A part of a text's path: where it begins and ends with the metric there, and the slope in its middle."""

    text: int
    start: float
    end: float
    high: float
    low: float
    slope: float

    @property
    def width(self) -> float:
        return self.end - self.start

    @property
    def gap(self) -> float:
        """What the midpoint rule has too much."""
        return self.width * self.slope - (self.high - self.low)

    def is_open(self, tolerance: float) -> bool:
        """Whether it misses so much that it is to be parted; a gap that is no number stays one."""
        most = tolerance * (_BY_WIDTH * self.width + _AT_LEAST)
        return abs(self.gap) > most and self.width > _NARROWEST

    @property
    def inner(self) -> tuple[float, float]:
        """Where it is parted."""
        third = self.width / 3
        return self.start + third, self.end - third

    @property
    def middles(self) -> tuple[Point, Point, Point]:
        """The middles of its thirds; that of the second is its own, which counted for the whole part before."""
        third = self.width / 3
        first, last = self.start + third / 2, self.end - third / 2
        return (
            Point(self.text, first, third),
            Point(self.text, (self.start + self.end) / 2, third - self.width),
            Point(self.text, last, third),
        )

    def thirds(self, metrics: Sequence[float], slopes: Sequence[float]) -> list["_Part"]:
        """The parts that take its place."""
        (left, right), (second, third) = self.inner, metrics
        return [
            _Part(self.text, self.start, left, self.high, second, slopes[0]),
            _Part(self.text, left, right, second, third, slopes[1]),
            _Part(self.text, right, self.end, third, self.low, slopes[2]),
        ]


def integrated(path: GroupPath, *, steps: int, tolerance: float | None, batch_size: int) -> Integral:
    """The integral over the path of each text in so many equal steps, or, with a tolerance, in more where they are
    needed: until a text misses no more than that, or has `MOST_STEPS`."""
    n_texts, wanted = path.subject.n_texts, path.change()
    points = [Point(text, share, 1 / steps) for text in range(n_texts) for share in midpoints(steps)]
    totals, slopes = path.weighted(points, batch_size=batch_size)
    counts = [steps] * n_texts
    gap = path.total(totals).to(wanted) - wanted
    if tolerance is None:
        return Integral(totals, gap, counts)
    unsure = (gap.abs() > tolerance).nonzero()[:, 0].tolist()
    parts = _equal_parts(path, unsure, slopes, wanted, steps=steps, batch_size=batch_size)
    while parts := [part for part in parts if part.is_open(tolerance) and counts[part.text] + 2 <= MOST_STEPS]:
        parts = _affordable(parts, counts)
        middles = [point for part in parts for point in part.middles]
        more, slopes = path.weighted(middles, batch_size=batch_size)
        ends = [Point(part.text, share) for part in parts for share in part.inner]
        metrics = path.metrics(ends, batch_size=batch_size)
        for place, total in totals.items():
            total += more[place]
        parts = [
            third
            for number, part in enumerate(parts)
            for third in part.thirds(metrics[2 * number : 2 * number + 2], slopes[3 * number : 3 * number + 3])
        ]
    return Integral(totals, path.total(totals).to(wanted) - wanted, counts)


def _equal_parts(
    path: GroupPath,
    texts: Sequence[int],
    slopes: Sequence[float],
    wanted: Float[Tensor, " text"],
    *,
    steps: int,
    batch_size: int,
) -> list[_Part]:
    """The equal parts of some texts, with the metric at their ends."""
    inner = [number / steps for number in range(1, steps)]
    points = [Point(text, share) for text in texts for share in inner]
    metrics = path.metrics(points, batch_size=batch_size) if points else []
    clean, parts = path.subject.metric_clean.tolist(), []
    for number, text in enumerate(texts):
        own = metrics[number * len(inner) : (number + 1) * len(inner)]
        values = [clean[text], *own, clean[text] - float(wanted[text])]
        parts += [
            _Part(text, part / steps, (part + 1) / steps, values[part], values[part + 1], slopes[text * steps + part])
            for part in range(steps)
        ]
    return parts


def _affordable(parts: Sequence[_Part], counts: list[int]) -> list[_Part]:
    """The parts that are parted, those that miss most first, and two steps more counted for each."""
    chosen = []
    for part in sorted(parts, key=lambda part: -abs(part.gap)):
        if counts[part.text] + 2 <= MOST_STEPS:
            counts[part.text] += 2
            chosen.append(part)
    return chosen
