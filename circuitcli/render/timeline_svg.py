"""Parts of the page with a time slider as SVG text: the circuit of one checkpoint, and lifelines.

Text from outside is escaped; nothing in it is markup.
"""

from collections.abc import Iterator
from html import escape

from circuitcli.records.through import Frame, FrameNode, TimelineReport
from circuitcli.render.text import shortened, signed, visible
from circuitcli.render.timeline import (
    CARD_HEIGHT,
    CARD_WIDTH,
    Places,
    counts,
    largest_effect,
    largest_weight,
    placed,
    spans,
)

POSITIVE, NEGATIVE = "31, 79, 216", "211, 34, 42"
MOST_EDGES, MOST_LINES = 80, 60
_LINE_HEIGHT, _NAME_WIDTH, _STEP_WIDTH = 15.0, 100.0, 46.0


def tint(value: float | None, largest: float) -> str:
    """A background as blue as a number is large, or as red as it is far below zero."""
    share = min(abs(value or 0.0) / largest, 1.0)
    return f"rgba({POSITIVE if (value or 0.0) >= 0 else NEGATIVE}, {0.06 + 0.6 * share**0.5:.3f})"


def step_name(frame: Frame) -> str:
    """What a checkpoint is called on an axis."""
    step = frame.circuit.step
    return visible(frame.circuit.checkpoint) if step is None else f"{step:,}"


def circuit_svg(report: TimelineReport, number: int, places: Places | None = None) -> str:
    """The circuit of one checkpoint."""
    places = places or placed(report)
    frame, largest = report.frames[number], largest_effect(report.frames)
    before = {node.line for node in report.frames[number - 1].nodes} if number else None
    parts = [_band(band.hook, band.y, band.height, places.width, index) for index, band in enumerate(places.bands)]
    parts += [*_edges(frame, places)]
    parts += [_ghost(places, line) for line in _ghosts(report, number)]
    for node in frame.nodes:
        is_new = before is not None and node.line is not None and node.line not in before
        parts.append(_card(node, places.of(node), largest, is_new=is_new, unit=report.unit))
    size = f"{places.width:g} {places.height:g}"
    name = escape(f"circuit at {visible(frame.circuit.checkpoint)}", quote=True)
    about = f'viewBox="0 0 {size}" style="max-width: {1.6 * places.width:g}px" role="img" aria-label="{name}"'
    return f'<svg class="circuit" {about}>{"".join(parts)}</svg>'


def _band(hook: str, y: float, height: float, width: float, index: int) -> str:
    fill = "#f4f5f8" if index % 2 else "#ffffff"
    middle = y + height / 2
    return (
        f'<rect x="0" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'
        f'<text x="4" y="{middle:g}" class="hook" dominant-baseline="middle">{escape(hook)}</text>'
    )


def _edges(frame: Frame, places: Places) -> Iterator[str]:
    by_id, largest = {node.id: node for node in frame.nodes}, largest_weight(frame)
    strongest = sorted(frame.edges, key=lambda edge: -abs(edge.weight))[:MOST_EDGES]
    for edge in reversed(strongest):
        if edge.source not in by_id or edge.target not in by_id:
            continue
        source, target = by_id[edge.source], by_id[edge.target]
        (x, y), (to_x, to_y) = places.of(source), places.of(target)
        x, to_x, to_y = x + CARD_WIDTH / 2, to_x + CARD_WIDTH / 2, to_y + CARD_HEIGHT
        share = abs(edge.weight) / largest
        bend = max(12.0, abs(y - to_y) / 2)
        path = f"M{x:g} {y:g}C{x:g} {y - bend:g} {to_x:g} {to_y + bend:g} {to_x:g} {to_y:g}"
        colour, dashes = (POSITIVE, "") if edge.weight >= 0 else (NEGATIVE, ' stroke-dasharray="7 4"')
        lines = " ".join(str(node.line) for node in (source, target) if node.line is not None)
        yield (
            f'<path class="edge" data-lines="{lines}" d="{path}" fill="none" stroke="rgb({colour})"{dashes} '
            f'stroke-width="{0.5 + 3 * share:.2f}" stroke-opacity="{0.12 + 0.6 * share:.2f}"/>'
        )


def _ghosts(report: TimelineReport, number: int) -> Iterator[int]:
    """Lifelines of features that are there but not in this circuit, though in one before and in one behind it."""
    here = {node.line for node in report.frames[number].nodes}
    for line, span in enumerate(spans(report)):
        if span is not None and span[0] < number < span[1] and line not in here:
            yield line


def _ghost(places: Places, line: int) -> str:
    x, y = places.cards[line]
    size = f'width="{CARD_WIDTH:g}" height="{CARD_HEIGHT:g}"'
    return f'<rect class="ghost" data-line="{line}" x="{x:g}" y="{y:g}" {size} rx="4"/>'


def _card(node: FrameNode, place: tuple[float, float], largest: float, *, is_new: bool, unit: str) -> str:
    (x, y), is_output = place, node.line is None
    kind = "output" if is_output else "error" if node.id.endswith("/error") else "feature"
    name = node.id.partition("@")[0].rpartition("/")[2]
    told = signed(node.effect) if node.effect is not None else ""
    title = f"{node.id}: effect {signed(node.effect, unit)}" if node.effect is not None else node.id
    title += f"\n{visible(node.label)}" if node.label else ""
    second = shortened(node.label, 12) if node.label and not is_output else told
    fill = "#eef7ee" if is_output else tint(node.effect, largest)
    data = "" if is_output else f' data-line="{node.line}" tabindex="0" role="button"'
    middle = x + CARD_WIDTH / 2
    return (
        f'<g class="node {kind}{" new" if is_new else ""}"{data}><title>{escape(title)}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{CARD_WIDTH:g}" height="{CARD_HEIGHT:g}" rx="4" fill="#fff"/>'
        f'<rect class="card" x="{x:g}" y="{y:g}" width="{CARD_WIDTH:g}" height="{CARD_HEIGHT:g}" rx="4" fill="{fill}"/>'
        f'<text class="id" x="{middle:g}" y="{y + 13:g}">{escape(name)}</text>'
        f'<text class="told" x="{middle:g}" y="{y + 25:g}">{escape(second)}</text></g>'
    )


def lifelines_svg(report: TimelineReport) -> tuple[str, int]:
    """A line for each feature that is in some circuit, the strongest ones, and how many are left out."""
    chosen, left_out = strongest_lines(report)
    largest, n = largest_effect(report.frames), len(report.frames)
    width, height = _NAME_WIDTH + n * _STEP_WIDTH, 18 + len(chosen) * _LINE_HEIGHT
    parts = []
    for number, frame in enumerate(report.frames):
        x = _NAME_WIDTH + (number + 0.5) * _STEP_WIDTH
        column = f'x="{x - _STEP_WIDTH / 2:g}" y="0" width="{_STEP_WIDTH:g}" height="{height:g}"'
        parts.append(f'<rect class="column" data-index="{number}" {column}/>')
        parts.append(f'<text class="tick" x="{x:g}" y="11" text-anchor="middle">{escape(step_name(frame))}</text>')
    for row, line in enumerate(chosen):
        parts += [*_lifeline(report, line, 18 + row * _LINE_HEIGHT, largest)]
    label = "features through training"
    return (
        f'<svg class="lines" viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    ), left_out


def strongest_lines(report: TimelineReport) -> tuple[list[int], int]:
    """The lifelines with the largest effects, by hook point and first circuit; and how many others there are."""
    sizes = [0.0] * len(report.lines)
    for frame in report.frames:
        for node in frame.nodes:
            if node.line is not None:
                sizes[node.line] = max(sizes[node.line], abs(node.effect or 0.0))
    there, often = spans(report), counts(report)
    drawn = [number for number, span in enumerate(there) if span is not None]
    kept = sorted(drawn, key=lambda number: -sizes[number] * often[number])[:MOST_LINES]
    return sorted(kept, key=lambda number: (there[number] or (0, 0), number)), len(drawn) - len(kept)


def _lifeline(report: TimelineReport, number: int, y: float, largest: float) -> Iterator[str]:
    line = report.lines[number]
    name = f"{line.hook}/{line.indices[-1] if line.indices else 'error'}"
    first, last = (_NAME_WIDTH + (place + 0.5) * _STEP_WIDTH for place in (line.first, line.last))
    middle = y + _LINE_HEIGHT / 2
    yield f'<g class="line" data-line="{number}" tabindex="0" role="button">'
    yield f'<text class="name" x="{_NAME_WIDTH - 6:g}" y="{middle + 3:g}" text-anchor="end">{escape(name)}</text>'
    yield f'<line class="life" x1="{first - 8:g}" x2="{last + 8:g}" y1="{middle:g}" y2="{middle:g}"/>'
    for place, frame in enumerate(report.frames):
        node = next((node for node in frame.nodes if node.line == number), None)
        if node is not None:
            x = _NAME_WIDTH + place * _STEP_WIDTH + 5
            title = escape(f"{node.id} at step {step_name(frame)}: {signed(node.effect or 0.0, report.unit)}")
            size = f'width="{_STEP_WIDTH - 10:g}" height="{_LINE_HEIGHT - 4:g}"'
            yield f'<rect x="{x:g}" y="{y + 2:g}" {size} fill="#fff"/>'
            yield (
                f'<rect class="there" x="{x:g}" y="{y + 2:g}" {size} fill="{tint(node.effect, largest)}">'
                f"<title>{title}</title></rect>"
            )
    yield "</g>"
