"""Where cards stand on the page: a row for each hook point, a column for each token position.

Cards of one hook point and position fill a cell, on several lines if need be; within a cell they are ordered so that
edges cross less. Inputs are at the bottom and the output is on top; y grows downwards, all numbers are pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitcli.graphs import Node
from circuitcli.hookpoints import OUTPUT, Position, position_order
from circuitcli.records import GraphRecord
from circuitcli.render.drawing import Drawing
from circuitcli.render.routes import Card, Point, routes
from circuitcli.render.sites import kind_of
from circuitcli.render.text import quoted, shortened

CARD_WIDTH, CARD_HEIGHT = 190.0, 56.0
CARD_GAP, LINE_GAP, COLUMN_GAP = 18.0, 18.0, 26.0
ROW_GAP, WIDEST_ROW_GAP = 44.0, 110.0
# Of names of hook points a character, as large as they are from afar, and the room beside them.
HOOK_CHARACTER, HOOK_GAP, SKIP_WIDTH = 11.5, 30.0, 30.0
# Below the rows: room, and a line for each of the alternatives of a position.
TOKEN_GAP, TOKEN_LINE = 18.0, 22.0
ASPECT = 1.45
SWEEPS = 6
TITLE_COLUMNS = 18

LINE = CARD_HEIGHT + LINE_GAP
# Every other line of a cell is shifted by half a card, so that edges pass between the cards above.
SHIFT = (CARD_WIDTH + CARD_GAP) / 2

Cell = tuple[str, Position]


@dataclass(frozen=True)
class Row:
    """The band of one hook point, of the kind that its colour says; every other layer is shaded."""

    hook: str
    y: float
    height: float
    n_lines: int
    kind: str | None
    shaded: bool


@dataclass(frozen=True)
class Column:
    """The nodes at one token position, or one named span; ``skipped`` positions without nodes lie in front of it."""

    position: Position
    x: float
    width: float
    skipped: int
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Top left corners of the cards by node id, the grid on which they stand, and the points of each edge."""

    places: Mapping[str, tuple[float, float]]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    width: float
    height: float
    bottom: float
    routes: Sequence[Sequence[Point]]

    def to_json(self) -> dict[str, Any]:
        """The layout as a tree of JSON values."""
        return {**asdict(self), "card": [CARD_WIDTH, CARD_HEIGHT]}


def layout(drawing: Drawing) -> Layout:
    """Lay out all nodes of the graph, those that pictures leave out too."""
    nodes = drawing.graph.nodes
    names = drawing.graph.head.span_names or ()
    last = max(map(_position, nodes), key=lambda position: position_order(position, names), default=None)
    cells: dict[Cell, list[str]] = {}
    for node in nodes:
        cells.setdefault((_hook(node), last if node.place is None else _position(node)), []).append(node.id)
    hooks = list(dict.fromkeys(_hook(node) for node in nodes))
    positions = sorted({position for _, position in cells}, key=lambda position: position_order(position, names))
    per_line = _per_line(cells, hooks, positions)
    left = HOOK_GAP + HOOK_CHARACTER * max(map(len, hooks), default=0)
    columns = _columns(cells, positions, per_line, drawing.graph.head, left)
    width = columns[-1].x + columns[-1].width + COLUMN_GAP if columns else left
    rows = _rows(cells, hooks, per_line, width)
    places = _ordered_places(drawing, cells, rows, columns, per_line)
    bottom = rows[0].y + rows[0].height if rows else 0.0
    height = bottom + TOKEN_GAP + TOKEN_LINE * max((len(column.titles) for column in columns), default=0)
    cards = {name: Card(x, y, CARD_WIDTH, CARD_HEIGHT) for name, (x, y) in places.items()}
    lines = routes(drawing, cards, between=(left - HOOK_GAP / 2, width))
    return Layout(places, tuple(rows), tuple(columns), width, height, bottom, lines)


def _hook(node: Node) -> str:
    return OUTPUT if node.place is None else str(node.place.hook)


def _position(node: Node) -> Position:
    return None if node.place is None else node.place.position


def _n_lines(cells: Mapping[Cell, Sequence[str]], hook: str, per_line: Mapping[Position, int]) -> int:
    return max(math.ceil(len(ids) / per_line[column]) for (row, column), ids in cells.items() if row == hook)


def _most(cells: Mapping[Cell, Sequence[str]], position: Position) -> int:
    return max(len(ids) for (_, column), ids in cells.items() if column == position)


def _width(cells: Mapping[Cell, Sequence[str]], position: Position, per_line: Mapping[Position, int]) -> float:
    slots = per_line[position] * (CARD_WIDTH + CARD_GAP) - CARD_GAP
    return slots + (SHIFT if _most(cells, position) > per_line[position] else 0)


def _per_line(
    cells: Mapping[Cell, Sequence[str]], hooks: Sequence[str], positions: Sequence[Position]
) -> dict[Position, int]:
    """Cards on one line of each column's cells so that the whole fits a screen as large as can be."""
    most = {position: _most(cells, position) for position in positions}

    def capacities(n_lines: int) -> dict[Position, int]:
        return {position: math.ceil(count / n_lines) for position, count in most.items()}

    def size(n_lines: int) -> float:
        per_line = capacities(n_lines)
        width = sum(_width(cells, position, per_line) + COLUMN_GAP for position in positions)
        height = sum(_n_lines(cells, hook, per_line) * LINE + ROW_GAP for hook in hooks)
        return max(width / ASPECT, height)

    return capacities(min(range(1, max(most.values(), default=1) + 1), key=size))


def _columns(
    cells: Mapping[Cell, Sequence[str]],
    positions: Sequence[Position],
    per_line: Mapping[Position, int],
    head: GraphRecord,
    left: float,
) -> list[Column]:
    columns: list[Column] = []
    x, before = left, -1
    for position in positions:
        skipped = position - before - 1 if isinstance(position, int) else 0
        x += SKIP_WIDTH if skipped else 0
        width = _width(cells, position, per_line)
        columns.append(Column(position, x, width, skipped, titles(head, position)))
        x += width + COLUMN_GAP
        before = position if isinstance(position, int) else -1
    return columns


def titles(head: GraphRecord, position: Position) -> tuple[str, ...]:
    """What stands below a column: the position with its token, or with some of several; or the name of the span."""
    if position is None:
        return ()
    told = [quoted(shortened(token, TITLE_COLUMNS)) for token in head.tokens_at(position)]
    first, *others = told or [""]
    return (f"{position} {first}".rstrip(), *others)


def _rows(
    cells: Mapping[Cell, Sequence[str]], hooks: Sequence[str], per_line: Mapping[Position, int], width: float
) -> list[Row]:
    """Rows in the order of the model, so that the first is the lowest; a wide picture has more room between them."""
    counts = {hook: _n_lines(cells, hook, per_line) for hook in reversed(hooks)}
    spare = (width / ASPECT - sum(count * LINE - LINE_GAP for count in counts.values())) / max(len(counts), 1)
    gap = min(max(spare, ROW_GAP), WIDEST_ROW_GAP)
    rows: list[Row] = []
    y = 0.0
    layers = list(dict.fromkeys(_layer(hook) for hook in reversed(hooks)))
    for hook, n_lines in counts.items():
        height = n_lines * LINE - LINE_GAP + gap
        kind = None if hook == OUTPUT else kind_of(hook.partition(".")[0])
        rows.append(Row(hook, y, height, n_lines, kind, layers.index(_layer(hook)) % 2 == 1))
        y += height
    return rows[::-1]


def _layer(hook: str) -> str:
    return hook.partition(".")[2]


def _ordered_places(
    drawing: Drawing,
    cells: Mapping[Cell, Sequence[str]],
    rows: Sequence[Row],
    columns: Sequence[Column],
    per_line: Mapping[Position, int],
) -> dict[str, tuple[float, float]]:
    """Places after a few sweeps that move each card towards the mean of its neighbours, weighted by edge strength."""
    neighbours = _neighbours(drawing)
    order = {cell: list(ids) for cell, ids in cells.items()}
    row_of, column_of = {row.hook: row for row in rows}, {column.position: column for column in columns}
    places: dict[str, tuple[float, float]] = {}
    for cell, ids in order.items():
        places |= _filled(ids, row_of[cell[0]], column_of[cell[1]], per_line[cell[1]])
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            for cell in [cell for cell in order if cell[0] == row.hook]:
                order[cell].sort(key=lambda name: _pull(name, neighbours, places))
                places |= _filled(order[cell], row, column_of[cell[1]], per_line[cell[1]])
    return places


def _neighbours(drawing: Drawing) -> dict[str, list[tuple[str, float]]]:
    neighbours: dict[str, list[tuple[str, float]]] = {}
    for edge in drawing.edges:
        strength = drawing.strength(edge)
        neighbours.setdefault(edge.source, []).append((edge.target, strength))
        neighbours.setdefault(edge.target, []).append((edge.source, strength))
    return neighbours


def _pull(
    name: str, neighbours: Mapping[str, Sequence[tuple[str, float]]], places: Mapping[str, tuple[float, float]]
) -> float:
    """The x to which the card's edges draw it; its own where it has none."""
    total = sum(strength for _, strength in neighbours.get(name, ()))
    if total <= 0:
        return places[name][0]
    return sum(places[other][0] * strength for other, strength in neighbours[name]) / total


def _filled(ids: Sequence[str], row: Row, column: Column, per_line: int) -> dict[str, tuple[float, float]]:
    """Places of one cell's cards: lines of even length, each running through the whole order, in the row's middle.

    Lines of all cells of a row are level, so that edges can pass between them.
    """
    n_lines = math.ceil(len(ids) / per_line)
    top = row.y + (row.height - row.n_lines * LINE + LINE_GAP) / 2 + (row.n_lines - n_lines) // 2 * LINE
    places = {}
    for line in range(n_lines):
        on_line = ids[line::n_lines]
        length = len(on_line) * (CARD_WIDTH + CARD_GAP) - CARD_GAP
        x = column.x + (column.width - length) / 2
        # A line that is one card shorter is shifted already, for it is centred.
        if n_lines > 1 and len(on_line) == len(ids[::n_lines]):
            x += SHIFT / 2 if line % 2 else -SHIFT / 2
        for slot, name in enumerate(on_line):
            places[name] = (x + slot * (CARD_WIDTH + CARD_GAP), top + (n_lines - 1 - line) * LINE)
    return places
