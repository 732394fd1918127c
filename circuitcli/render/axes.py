"""Axes of plots: what a picture of numbers covers, where its ticks are, and how they are written."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

# Where types are checked at run time, an int is no float.
Number = float | int
# With "auto", an axis is logarithmic if all numbers are positive and the largest is so many times the smallest.
LOG_RATIO = 50.0
# Room beyond the outermost points, as a share of the axis.
MARGIN = 0.05
# What is further from zero has no place, as infinities have none; what is nearer is zero: neither overflows.
LARGEST, SMALLEST = 1e250, 1e-250


@dataclass(frozen=True)
class Axis:
    """What one axis shows: its label, with the unit, and how it is scaled.

    holds: numbers that the axis covers whatever the points are, for example zero.
    """

    label: str = ""
    scale: Literal["linear", "log", "auto"] = "linear"
    holds: tuple[Number, ...] = ()

    def span(self, values: Iterable[Number]) -> "Span":
        """What the axis covers to show these numbers. A log axis has no place for what is not positive."""
        finite = [_shown(value) for value in values if has_place(value)]
        is_log = self.scale == "log" or (self.scale == "auto" and _is_wide(finite))
        if is_log:
            logs = [math.log10(value) for value in (*finite, *self.holds) if value > 0] or [0.0]
            low, high = _padded(min(logs), max(logs), holds=(), least=math.log10(2))
            return Span(10**low, 10**high, is_log=True)
        shown = [*finite, *self.holds] or [0.0, 1.0]
        return Span(*_padded(min(shown), max(shown), holds=self.holds, least=0.0), is_log=False)


@dataclass(frozen=True)
class Span:
    """The numbers between two ends, and the places that they have."""

    low: Number
    high: Number
    is_log: bool

    def place(self, value: Number) -> float | None:
        """0 at the low end, 1 at the high one; None for what has no place."""
        if not has_place(value) or (self.is_log and _shown(value) <= 0):
            return None
        if self.is_log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self, *, most: int = 6) -> list[float]:
        """Round numbers inside the span, rising."""
        if not self.is_log:
            return _multiples(self.low, self.high, most=most)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        few = max(6, -(-(last - first) // max(1, most - 1)))
        for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), few)):
            found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
            inside = [value for value in found if self.low <= value <= self.high]
            if len(inside) <= most:
                break
        return inside if len(inside) > 1 else _multiples(self.low, self.high, most=most)


def has_place(value: Number) -> bool:
    """Whether an axis can show a number at all; whole numbers of hundreds of digits and infinities it cannot."""
    return -LARGEST <= value <= LARGEST


def _shown(value: Number) -> Number:
    return value if abs(value) >= SMALLEST else 0.0


def tick_texts(values: Sequence[Number], *, is_log: bool = False) -> list[str]:
    """The numbers of an axis's ticks; plain ones of a linear axis get the same number of digits after the point."""
    texts = [tick_text(value) for value in values]
    if is_log or not all(set(text) <= set("-.0123456789") for text in texts):
        return texts
    digits = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:.{digits}f}" if value else "0" for value in values]


def tick_text(value: Number) -> str:
    """A tick's number, short: 0.25, 40, 1.5k, 2M, 3e-5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.4g}"


def _is_wide(values: Sequence[Number]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values)


def _padded(low: Number, high: Number, *, holds: tuple[Number, ...], least: float) -> tuple[Number, Number]:
    """Both ends with room beyond them, but none beyond a number that the axis was to hold."""
    if high - low <= least or high - low <= 1e-12 * max(abs(low), abs(high)):
        middle, half = (low + high) / 2, max(least, abs(high) * 0.1) or 1.0
        wide_low, wide_high = middle - half, middle + half
    else:
        margin = MARGIN * (high - low)
        wide_low, wide_high = low - margin, high + margin
    if low == high:
        # All numbers are one that the axis was to hold: the room is above it.
        return (low if low in holds else wide_low), wide_high
    return (low if low in holds else wide_low), (high if high in holds else wide_high)


def _multiples(low: Number, high: Number, *, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, as many as are allowed."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    # The step's own digits: 0.1 * 3 would be 0.30000000000000004.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
