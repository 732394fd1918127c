"""A drawing as Graphviz DOT: inputs at the bottom, the output on top, one or more lines of boxes for each hook point.

With positions, boxes stand from left to right in the order of their tokens. Rows too long for a readable picture are
broken into several lines.
"""

import math
from collections.abc import Sequence

from graphviz import Digraph

from circuitcli.graphs import Edge, Node
from circuitcli.hookpoints import Position, position_order
from circuitcli.render.boxes import box, share_of_prompts, summary
from circuitcli.render.drawing import Drawing
from circuitcli.render.fonts import FAMILIES
from circuitcli.render.group_boxes import group_box, group_summary
from circuitcli.render.heading import heading
from circuitcli.render.labels import LONGEST
from circuitcli.render.scales import sign_colour
from circuitcli.render.sites import FILL, INK, kind_of_node
from circuitcli.render.text import measured, shortened, signed
from circuitcli.settings.render import RenderSettings

LABELLED_EDGES = 24
# Of more edges dot looks less long for the best places: 300 boxes with 1,000 edges take 5 s instead of more than 30.
HURRIED_EDGES = 200
# Heads that a tooltip tells of an edge.
TOLD_HEADS = 4
BACKSLASH = "\N{REVERSE SOLIDUS OPERATOR}"
ASPECT = 1.5
# Rough size of a box with contexts, and of one with numbers alone, with the room that edges take around it, in points.
BOX, SMALL_BOX = (400.0, 215.0), (290.0, 75.0)


def dot_source(drawing: Drawing, settings: RenderSettings) -> str:
    """The DOT text; the same drawing always gives the same text, and no ``dot`` program is needed."""
    dot = Digraph("circuit")
    dot.attr("graph", label=heading(drawing), labelloc="t", labeljust="l", rankdir="BT", outputorder="edgesfirst")
    dot.attr("graph", fontname=FAMILIES, nodesep="0.08", ranksep="0.55", bgcolor="white", charset="UTF-8", pad="0.2")
    if len(drawing.edges) > HURRIED_EDGES:
        dot.attr("graph", nslimit="2", nslimit1="2")
    dot.attr("node", fontname=FAMILIES, fontsize="11", shape="box", margin="0.05,0.03", height="0", width="0")
    dot.attr("node", style="filled", fillcolor="white", color="#777777")
    dot.attr("edge", fontname=FAMILIES, fontsize="9", arrowsize="0.55")
    _add_rows(dot, drawing, settings)
    for edge in drawing.edges:
        _add_edge(dot, edge, drawing)
    return str(dot.source)


def _add_rows(dot: Digraph, drawing: Drawing, settings: RenderSettings) -> None:
    rows = _rows(drawing.nodes)
    is_known = any(drawing.known(node) for node in drawing.nodes)
    per_line = _per_line([len(nodes) for nodes in rows.values()], BOX if is_known else SMALL_BOX)
    last: str | None = None
    for name, nodes in rows.items():
        for number, line in enumerate(_lines(nodes, per_line)):
            anchor = f"row {name} {number}"
            ink = INK.get(kind_of_node(nodes[0]) or "", "#666666")
            title = {"label": name if number == 0 else "", "fontcolor": ink}
            _add_line(dot, line, anchor=anchor, title=title, drawing=drawing, settings=settings)
            if last is not None:
                dot.edge(last, anchor, style="invis", weight="100")
            last = anchor


def _rows(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Nodes by hook point, in the order of the model, the output last."""
    rows: dict[str, list[Node]] = {}
    for node in nodes:
        rows.setdefault("output" if node.place is None else str(node.place.hook), []).append(node)
    return rows


def _per_line(counts: Sequence[int], box_size: tuple[float, float]) -> int:
    """Boxes in a line so that the whole picture comes near to the shape of a screen."""

    def size(per_line: int) -> float:
        width = min(per_line, max(counts)) * box_size[0]
        height = sum(math.ceil(count / per_line) for count in counts) * box_size[1]
        return max(width / ASPECT, height)

    return min(range(4, 33), key=size) if counts else 4


def _lines(nodes: Sequence[Node], per_line: int) -> list[list[Node]]:
    """The nodes of one hook point on lines; each line runs through all positions."""
    n_lines = math.ceil(len(nodes) / per_line)
    return [list(nodes[number::n_lines]) for number in range(n_lines)]


def _add_line(
    dot: Digraph,
    nodes: Sequence[Node],
    *,
    anchor: str,
    title: dict[str, str],
    drawing: Drawing,
    settings: RenderSettings,
) -> None:
    with dot.subgraph() as line:
        line.attr(rank="same")
        line.node(anchor, shape="plaintext", style="", fontsize="13", **title)
        for node in nodes:
            _add_box(line, node, drawing, settings)
        before = [anchor]
        for group in _groups(nodes, drawing.graph.head.span_names or ()):
            for left in before:
                for right in group:
                    line.edge(left, right, style="invis")
            before = group


def _groups(nodes: Sequence[Node], span_names: Sequence[str]) -> list[list[str]]:
    """Ids by position, from left to right; nodes without positions are one group."""
    groups: dict[Position, list[str]] = {}
    for node in nodes:
        groups.setdefault(None if node.place is None else node.place.position, []).append(node.id)
    return [groups[position] for position in sorted(groups, key=lambda position: position_order(position, span_names))]


def _add_box(line: Digraph, node: Node, drawing: Drawing, settings: RenderSettings) -> None:
    kind = kind_of_node(node)
    look = {"fillcolor": FILL[kind]} if kind is not None else {}
    if node.place is None:
        look = {"fillcolor": "#eef7ee", "color": "#2c7a2c", "penwidth": "2"}
    elif node.place.is_error:
        look["style"] = "dotted,filled"
    elif node.place.is_token:
        look["fillcolor"] = "#f1f1f1"
    group = drawing.boxes.get(node.id)
    label = box(node, drawing, settings) if group is None else group_box(node, group, drawing)
    told = summary(node, drawing) if group is None else group_summary(node, group)
    if group is not None:
        look |= {"style": "rounded,filled", "penwidth": "2"}
    line.node(node.id, label=label, tooltip=_plain(told), **look)


def _add_edge(dot: Digraph, edge: Edge, drawing: Drawing) -> None:
    scale = drawing.scale(edge)
    look = {
        "color": scale.colour(edge.weight),
        "penwidth": f"{scale.width(edge.weight):.2f}",
        "weight": str(1 + round(9 * scale.strength(edge.weight))),
        "tooltip": _plain(edge_summary(edge)),
    }
    # Signs differ without colours too: what works against its target is dashed and has a blunt head.
    look |= {"style": "dashed", "arrowhead": "tee"} if edge.weight < 0 else {}
    if len(drawing.edges) <= LABELLED_EDGES:
        look |= {"label": _plain(signed(edge.weight)), "fontcolor": sign_colour(edge.weight)}
    dot.edge(edge.source, edge.target, **look)


def edge_summary(edge: Edge) -> str:
    """The edge in one line of plain text, for tooltips."""
    told = measured(edge.weight, edge.unit, standard_error=edge.standard_error)
    active = "" if edge.active is None else f", {share_of_prompts(edge.active)}"
    return f"{edge.source} → {edge.target}: {told}{active}{_of_heads(edge)}"


def _of_heads(edge: Edge) -> str:
    """The strongest parts of an edge by head."""
    parts = sorted((edge.heads or {}).items(), key=lambda part: -abs(part[1]))[:TOLD_HEADS]
    told = ", ".join(f"{name} {signed(value)}" for name, value in parts)
    return f"; by head: {told}" if told else ""


def _plain(text: str) -> str:
    """Text for a tooltip or an edge's label, in which entities and backslashes have a meaning."""
    # Graphviz 2.43 resolves escapes in tooltips of nodes twice and of edges once; no spelling of \N suits both.
    return shortened(text, LONGEST).replace("&", "&amp;").replace("\\", BACKSLASH)
