"""Plots as plain SVG text: small panels of lines and labelled points, readable in black and white.

The same numbers give the same text. A library's pictures would change with its version and the fonts that it finds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, pairwise

from circuitcli.render.axes import Axis, Number, Span, tick_texts
from circuitcli.render.placing import Box, label_places
from circuitcli.render.text import visible, width

# Of different lightness, and for those who do not see colours, dashes and marks differ too.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "7 3", "2 2", "9 3 2 3", "5 2 1 2 1 2")
MARKS = ("circle", "square", "up", "diamond", "down")
FONT = 11
# Width of a sans-serif letter, as a share of its height: text is never wider in the common fonts.
LETTER = 0.6
LEFT, RIGHT, ABOVE, BELOW = 70, 14, 24, 40
MARK = 3.5


@dataclass(frozen=True)
class Point:
    """A place in a panel; ``label`` is written beside it."""

    x: Number
    y: Number
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order of the line through them.

    One ``label`` has one look in all panels of a figure and one entry in its legend; without a label there is no entry.
    """

    points: Sequence[Point]
    label: str = ""
    is_joined: bool = True
    is_marked: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. Several panels may share an axis: give both the same ``Span``."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    title: str = ""
    x_span: Span | None = None
    y_span: Span | None = None


@dataclass(frozen=True)
class Figure:
    """Panels, left to right and then down; sizes in pixels of one panel's frame."""

    panels: Sequence[Panel]
    n_columns: int = 1
    title: str = ""
    width: int = 420
    height: int = 280
    styles: dict[str, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        labels = dict.fromkeys(series.label for panel in self.panels for series in panel.series if series.label)
        object.__setattr__(self, "styles", {label: index for index, label in enumerate(labels)})


def svg(figure: Figure) -> str:
    """The SVG document. What is not finite, or not positive on a log axis, is left out and breaks its line."""
    cell_width, cell_height = LEFT + figure.width + RIGHT, ABOVE + figure.height + BELOW
    total = max(1, min(figure.n_columns, len(figure.panels))) * cell_width
    head, top = _head(figure, total)
    cells: list[str] = []
    for index, panel in enumerate(figure.panels):
        row, column = divmod(index, figure.n_columns)
        frame = Box(column * cell_width + LEFT, top + row * cell_height + ABOVE, figure.width, figure.height)
        cells += _panel(panel, frame, figure.styles, clip=f"frame{index}")
    height = top + math.ceil(len(figure.panels) / figure.n_columns) * cell_height
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" viewBox="0 0 {total} {height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{FONT}">'
    )
    return "\n".join([opening, '<rect width="100%" height="100%" fill="#ffffff"/>', *head, *cells, "</svg>"]) + "\n"


def _head(figure: Figure, total: int) -> tuple[list[str], int]:
    """Title and legend, and where the panels begin."""
    parts, y = [], 8
    if figure.title:
        y += FONT + 4
        parts.append(_text(12, y, figure.title, anchor="start", weight="bold", size=FONT + 2))
        y += 6
    if figure.styles:
        x, y = 12.0, y + FONT + 4
        marked = {series.label for panel in figure.panels for series in panel.series if series.is_marked}
        for label, style in figure.styles.items():
            room = 44 + LETTER * FONT * width(label)
            if x > 12 and x + room > total:
                x, y = 12.0, y + FONT + 6
            parts.append(_line([(x, y - 4), (x + 28, y - 4)], style))
            parts += [_mark(x + 14, y - 4, style)] if label in marked else []
            parts.append(_text(x + 33, y, label, anchor="start"))
            x += room
        y += 4
    return parts, y


def _panel(panel: Panel, frame: Box, styles: dict[str, int], *, clip: str) -> Iterator[str]:
    everything = list(chain.from_iterable(series.points for series in panel.series))
    x_span = panel.x_span or panel.x.span(point.x for point in everything)
    y_span = panel.y_span or panel.y.span(point.y for point in everything)
    yield from _frame(panel, frame, x_span, y_span)
    yield f'<clipPath id="{clip}"><rect {_rectangle(frame.grown(MARK + 1))}/></clipPath>'
    yield f'<g clip-path="url(#{clip})">'
    labelled: list[tuple[Number, Number, str]] = []
    occupied: list[tuple[Number, Number]] = []
    for series in panel.series:
        style = styles.get(series.label, 0)
        places = [_place(point, frame, x_span, y_span) for point in series.points]
        if series.is_joined:
            yield from (_line(run, style) for run in _runs(places))
            occupied += [middle for run in _runs(places) for middle in _along(run)]
        for point, place in zip(series.points, places, strict=True):
            if place is not None:
                occupied.append(place)
                if series.is_marked or not series.is_joined:
                    numbers = f"{series.label} {point.label}: {point.x:.6g}, {point.y:.6g}".strip(": ")
                    yield _mark(*place, style, tip=numbers)
                if point.label:
                    labelled.append((*place, point.label))
    yield "</g>"
    sizes = [(LETTER * FONT * width(label), float(FONT)) for _, _, label in labelled]
    for (_, _, label), box in zip(labelled, label_places(labelled, sizes, occupied, frame), strict=True):
        yield _text(box.x, box.y + FONT - 2, label, anchor="start")


def _frame(panel: Panel, frame: Box, x_span: Span, y_span: Span) -> Iterator[str]:
    """Title, grid, ticks with numbers, axis labels."""
    bottom, right = frame.y + frame.height, frame.x + frame.width
    x_ticks = x_span.ticks(most=max(2, int(frame.width // 45)))
    for value, number in zip(x_ticks, tick_texts(x_ticks, is_log=x_span.is_log), strict=True):
        x = frame.x + (x_span.place(value) or 0.0) * frame.width
        yield f'<path d="M{x:.1f} {frame.y:.1f}V{bottom + 4:.1f}" stroke="#dddddd"/>'
        yield _text(x, bottom + FONT + 5, number, anchor="middle")
    y_ticks = y_span.ticks(most=max(2, int(frame.height // 23)))
    for value, number in zip(y_ticks, tick_texts(y_ticks, is_log=y_span.is_log), strict=True):
        y = bottom - (y_span.place(value) or 0.0) * frame.height
        yield f'<path d="M{frame.x - 4:.1f} {y:.1f}H{right:.1f}" stroke="#dddddd"/>'
        yield _text(frame.x - 7, y + 4, number, anchor="end")
    yield f'<rect {_rectangle(frame)} fill="none" stroke="#888888"/>'
    yield _text(frame.x, frame.y - 7, panel.title, anchor="start", weight="bold")
    middle = frame.y + frame.height / 2
    yield _text(frame.x + frame.width / 2, bottom + 2 * FONT + 9, panel.x.label, anchor="middle")
    yield _text(frame.x - 55, middle, panel.y.label, anchor="middle", turn=True)


def _place(point: Point, frame: Box, x_span: Span, y_span: Span) -> tuple[Number, Number] | None:
    x, y = x_span.place(point.x), y_span.place(point.y)
    if x is None or y is None:
        return None
    return frame.x + x * frame.width, frame.y + (1 - y) * frame.height


def _runs(places: Sequence[tuple[Number, Number] | None]) -> Iterator[list[tuple[Number, Number]]]:
    """The unbroken parts of a line."""
    run: list[tuple[Number, Number]] = []
    for place in (*places, None):
        if place is not None:
            run.append(place)
        elif run:
            yield run
            run = []


def _along(run: Sequence[tuple[Number, Number]]) -> Iterator[tuple[Number, Number]]:
    """Places on a line, a few pixels apart, that labels should not cover."""
    for (x0, y0), (x1, y1) in pairwise(run):
        n_pieces = max(1, round(math.hypot(x1 - x0, y1 - y0) / 6))
        yield from ((x0 + (x1 - x0) * i / n_pieces, y0 + (y1 - y0) * i / n_pieces) for i in range(1, n_pieces))


def _line(places: Sequence[tuple[Number, Number]], style: int) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = DASHES[style % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{points}" fill="none" stroke="{_colour(style)}" stroke-width="1.5"{dashes}/>'


def _mark(x: Number, y: Number, style: int, *, tip: str = "") -> str:
    r, shape = MARK, MARKS[style % len(MARKS)]
    title = f"<title>{escape(visible(tip))}</title>" if tip else ""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{_colour(style)}">{title}</circle>'
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "up": ((0, -r - 1), (r + 1, r), (-r - 1, r)),
        "diamond": ((0, -r - 1.5), (r + 1.5, 0), (0, r + 1.5), (-r - 1.5, 0)),
        "down": ((0, r + 1), (r + 1, -r), (-r - 1, -r)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{_colour(style)}">{title}</polygon>'


def _colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]


def _rectangle(box: Box) -> str:
    return f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'


def _text(
    x: Number, y: Number, text: str, *, anchor: str, weight: str = "", size: int | None = None, turn: bool = False
) -> str:
    look = f' font-weight="{weight}"' if weight else ""
    look += f' font-size="{size}"' if size else ""
    look += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(visible(text))}</text>'
