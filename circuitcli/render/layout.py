"""What rows and columns of boxes a page has: a row for each hook point, a column for each token position or named span.

Where they stand, and the boxes in them, the page works out for what it shows: see ``assets/explorer/arrange.js``.
"""

from dataclasses import asdict, dataclass
from typing import Any

from circuitcli.graphs import Node
from circuitcli.hookpoints import OUTPUT, Position, position_order
from circuitcli.records import GraphRecord
from circuitcli.render.drawing import Drawing
from circuitcli.render.sites import kind_of
from circuitcli.render.text import quoted, shortened

TITLE_COLUMNS = 18


@dataclass(frozen=True)
class Row:
    """The band of one hook point, of the kind that its colour says; every other layer is shaded."""

    hook: str
    kind: str | None
    shaded: bool


@dataclass(frozen=True)
class Column:
    """The nodes at one token position, or one named span, with what stands below it."""

    position: Position
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Rows from the inputs to the output, and columns from left to right."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    def to_json(self) -> dict[str, Any]:
        """The layout as a tree of JSON values."""
        return asdict(self)


def layout(drawing: Drawing) -> Layout:
    """Rows and columns of all nodes of the graph, those that pictures leave out too."""
    head, nodes = drawing.graph.head, drawing.graph.nodes
    hooks = list(dict.fromkeys(_hook(node) for node in nodes))
    layers = list(dict.fromkeys(_layer(hook) for hook in reversed(hooks)))
    positions = {node.place.position for node in nodes if node.place is not None} or {None for _ in nodes[:1]}
    ordered = sorted(positions, key=lambda position: position_order(position, head.span_names or ()))
    return Layout(
        tuple(Row(hook, _kind(hook), layers.index(_layer(hook)) % 2 == 1) for hook in hooks),
        tuple(Column(position, titles(head, position)) for position in ordered),
    )


def _hook(node: Node) -> str:
    return OUTPUT if node.place is None else str(node.place.hook)


def _kind(hook: str) -> str | None:
    return None if hook == OUTPUT else kind_of(hook.partition(".")[0])


def _layer(hook: str) -> str:
    return hook.partition(".")[2]


def titles(head: GraphRecord, position: Position) -> tuple[str, ...]:
    """What stands below a column: the position with its token, or with some of several; or the name of the span."""
    if position is None:
        return ()
    told = [quoted(shortened(token, TITLE_COLUMNS)) for token in head.tokens_at(position)]
    first, *others = told or [""]
    return (f"{position} {first}".rstrip(), *others)
