"""A circuit as a Mermaid flowchart, as GitHub, GitLab and notes show it; so small that they do.

Only the strongest edges fit: Mermaid takes 50,000 characters and 500 edges. What is left out stands in the picture.
"""

from collections.abc import Iterable, Iterator

from circuitcli.graphs import Edge, Node
from circuitcli.graphs.exchange.shared import plural
from circuitcli.hookpoints import NodeId
from circuitcli.render.drawing import Drawing
from circuitcli.render.text import number, shortened, signed

# Mermaid's own limits are 50,000 and 500.
MOST_CHARACTERS, MOST_EDGES = 48_000, 400
LABEL_COLUMNS = 48
# Of nodes without edges.
MOST_ALONE = 50
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,/+-_@%")


def mermaid(drawing: Drawing) -> str:
    """The flowchart, inputs at the bottom; edges of negative weight are dashed."""
    strongest = drawing.edges[::-1][:MOST_EDGES]
    while len(text := _chart(drawing, strongest)) > MOST_CHARACTERS and strongest:
        strongest = strongest[: len(strongest) * 9 // 10]
    return text


def escaped(text: str) -> str:
    """The text as it stands between quotation marks: all that could be markup by its number."""
    return "".join(
        character if character in _PLAIN or ord(character) > 0xA0 else f"#{ord(character)};" for character in text
    )


def _chart(drawing: Drawing, edges: Iterable[Edge]) -> str:
    chosen = [*edges]
    ends = _ends(chosen)
    joined = _ends(drawing.graph.edges)
    alone = [node.id for node in drawing.graph.nodes if node.id not in joined]
    shown = ends | {*alone[:MOST_ALONE]}
    nodes = [node for node in drawing.graph.nodes if node.id in shown or node.is_output]
    names = {node.id: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart BT", *_nodes(drawing, nodes, names), *(_edge(edge, names) for edge in chosen)]
    return "\n".join([*lines, *_left_out(drawing, len(nodes), len(chosen))]) + "\n"


def _ends(edges: Iterable[Edge]) -> set[str]:
    return {end for edge in edges for end in (edge.source, edge.target)}


def _nodes(drawing: Drawing, nodes: Iterable[Node], names: dict[str, str]) -> Iterator[str]:
    for node in nodes:
        opening, closing = ("([", "])") if node.is_output else ("{{", "}}") if node.kind == "error" else ("[", "]")
        yield f'  {names[node.id]}{opening}"{"<br>".join(map(escaped, _label(drawing, node)))}"{closing}'


def _label(drawing: Drawing, node: Node) -> Iterator[str]:
    place, known = node.place, drawing.known(node)
    yield shortened(_title(place, drawing, node), LABEL_COLUMNS)
    if known is not None and known.label:
        yield shortened(known.label, LABEL_COLUMNS)
    if node.effect is not None:
        yield f"effect {signed(node.effect, node.unit)}"


def _title(place: NodeId | None, drawing: Drawing, node: Node) -> str:
    token = drawing.token(node)
    if place is None:
        return f"output {token or drawing.graph.head.target or drawing.graph.head.metric}"
    return str(place) if token is None else f"{place} {token}"


def _edge(edge: Edge, names: dict[str, str]) -> str:
    arrow = "-.->" if edge.weight < 0 else "-->"
    return f'  {names[edge.source]} {arrow}|"{escaped(number(edge.weight))}"| {names[edge.target]}'


def _left_out(drawing: Drawing, n_nodes: int, n_edges: int) -> Iterator[str]:
    nodes, edges = len(drawing.graph.nodes) - n_nodes, len(drawing.graph.edges) - n_edges
    if nodes or edges:
        left = [plural(edges, "weaker edge")] * (edges > 0) + [plural(nodes, "node")] * (nodes > 0)
        yield f'  more["left out: {" and ".join(left)}"]'
        yield "  style more stroke-dasharray: 4"
