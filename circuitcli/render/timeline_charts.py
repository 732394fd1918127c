"""Charts over checkpoints as SVG text, which the page with a time slider shows; text from outside is escaped."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

from circuitcli.records.through import Chart, Curve
from circuitcli.render.text import visible

COLOURS = ("#16181d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
DASHES = ("", "5 2", "2 2", "7 2 2 2", "4 2 1 2", "1 3")
CHART_WIDTH, CHART_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330.0, 150.0, 44.0, 18.0, 8.0, 30.0


def chart_svg(chart: Chart, names: Sequence[str]) -> str:
    """Curves over checkpoints, which stand at equal distances; a gap where there is no number."""
    numbers = [value for curve in chart.curves for value in _numbers(curve)]
    low, high = _limits(numbers, is_share=chart.is_share)

    def at(number: int, value: float) -> str:
        return f"{chart_x(number, len(names)):.1f} {_y(value, low, high):.1f}"

    parts = [*_axes(names, low, high)]
    for index, curve in enumerate(chart.curves):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        parts += [*_band_of(curve, at, colour)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        for run in _runs(curve.values):
            points = " L".join(at(number, value) for number, value in run)
            parts.append(f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dashed}/>')
            circles = (at(number, value).split() for number, value in run)
            parts += [f'<circle cx="{x}" cy="{y}" r="2.2" fill="{colour}"/>' for x, y in circles]
    middle = f'x1="{LEFT:g}" x2="{LEFT:g}" y1="{TOP:g}" y2="{CHART_HEIGHT - BOTTOM:g}"'
    parts.append(f'<line class="marker" {middle}/>')
    name = escape(visible(chart.title), quote=True)
    about = f'viewBox="0 0 {CHART_WIDTH:g} {CHART_HEIGHT:g}" role="img" aria-label="{name}"'
    return f'<svg class="chart" {about}>{"".join(parts)}</svg>'


def chart_x(number: int, n: int) -> float:
    """Where a checkpoint stands on a chart."""
    return LEFT + (CHART_WIDTH - LEFT - RIGHT) * (number / (n - 1) if n > 1 else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return CHART_HEIGHT - BOTTOM - (CHART_HEIGHT - BOTTOM - TOP) * (min(max(value, low), high) - low) / (high - low)


def _numbers(curve: Curve) -> Iterator[float]:
    yield from (
        value for values in (curve.values, curve.low or (), curve.high or ()) for value in values if value is not None
    )


def _limits(numbers: Sequence[float], *, is_share: bool) -> tuple[float, float]:
    """Of an axis; shares a little beyond 0 and 1 are cut at -.25 and 1.25, so that one noisy ratio hides no other."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if is_share:
        return max(min(low, 0.0), -0.25), min(max(high, 1.0), 1.25)
    if high == low:
        return (low, low + 1) if low == 0 else (low - 0.5, high + 0.5)
    return low, high


def _axes(names: Sequence[str], low: float, high: float) -> Iterator[str]:
    bottom = CHART_HEIGHT - BOTTOM
    for value in (low, (low + high) / 2, high):
        y = _y(value, low, high)
        yield f'<line class="grid" x1="{LEFT:g}" x2="{CHART_WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 4:g}" y="{y + 3:.1f}" text-anchor="end">{value:.3g}</text>'
    room = (CHART_WIDTH - LEFT - RIGHT) / max(len(names), 1)
    each = max(1, -(-int(6 + 5.5 * max(map(len, names), default=1)) // max(int(room), 1)))
    for number, name in enumerate(names):
        if number % each == 0:
            x = chart_x(number, len(names))
            yield f'<text class="tick" x="{x:.1f}" y="{bottom + 13:g}" text-anchor="middle">{escape(name)}</text>'
    yield f'<text class="tick" x="{CHART_WIDTH - RIGHT:g}" y="{CHART_HEIGHT - 4:g}" text-anchor="end">step</text>'


def _band_of(curve: Curve, at: Callable[[int, float], str], colour: str) -> Iterator[str]:
    """The intervals as a shade behind the curve."""
    if curve.low is None or curve.high is None:
        return
    for run in _runs(curve.values):
        numbers = [number for number, _ in run]
        low = [bound for number in numbers if (bound := curve.low[number]) is not None]
        high = [bound for number in numbers if (bound := curve.high[number]) is not None]
        if len(low) < len(numbers) or len(high) < len(numbers):
            continue
        there = [at(n, v) for n, v in zip(numbers, high, strict=True)]
        back = [at(n, v) for n, v in zip(reversed(numbers), reversed(low), strict=True)]
        yield f'<path d="M{" L".join([*there, *back])}Z" fill="{colour}" fill-opacity="0.12"/>'


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """What lies between gaps."""
    found: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            found.append([])
        else:
            found[-1].append((number, value))
    return [run for run in found if run]
