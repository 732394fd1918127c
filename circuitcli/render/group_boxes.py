"""The box of a group of nodes that stand for one in a Graphviz drawing."""

from circuitcli.graphs import Node
from circuitcli.render.drawing import Drawing
from circuitcli.render.labels import GREY, cell, row, signed_span, span, table
from circuitcli.render.state import NamedGroup
from circuitcli.render.text import shortened, signed, visible, wrapped

COLUMNS = 34
# Members that are named.
MEMBERS = 8


def group_box(node: Node, group: NamedGroup, drawing: Drawing) -> str:
    """The label of a group: its name, the sum of its effects, and its members."""
    lines = [row(cell(span(line, bold=True))) for line in wrapped(title(group), COLUMNS, lines=2)]
    if node.effect is not None:
        lines.append(row(cell(span("sum of effects ", size=9) + signed_span(node.effect, node.unit, size=9))))
    lines += [row(cell(_member(name, drawing))) for name in group.members[:MEMBERS]]
    if more := len(group.members) - MEMBERS:
        lines += [row(cell(span(f"and {more} more", size=9, colour=GREY)))] if more > 0 else []
    return f"<{table(*lines)}>"


def title(group: NamedGroup) -> str:
    """The name of a group, or what it is."""
    return group.name.strip() or f"{len(group.members)} nodes"


def group_summary(node: Node, group: NamedGroup) -> str:
    """The group in one line of plain text, for tooltips."""
    effect = "" if node.effect is None else f", sum of effects {signed(node.effect, node.unit)}"
    return f"{visible(title(group))}: {', '.join(group.members[:MEMBERS])}{effect}"


def _member(name: str, drawing: Drawing) -> str:
    known = drawing.details.get(name.partition("@")[0])
    label = "" if known is None or not known.label else shortened(known.label, max(8, COLUMNS - len(name)))
    return span(name, size=9) + span(f" {label}", size=9, colour=GREY)
