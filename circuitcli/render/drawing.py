"""What all pictures of a graph have in common: which edges are drawn, on which scale, and what is left out."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from circuitcli import pieces
from circuitcli.errors import InputError
from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, Edge, Node, Trace, sorted_graph
from circuitcli.graphs.groups import Group
from circuitcli.records import ScoreRecord, VerdictRecord
from circuitcli.render.scales import Scale
from circuitcli.render.state import NamedGroup, State
from circuitcli.render.strongest import strongest_nodes

MAX_EDGES = 300


@dataclass(frozen=True)
class LeftOut:
    """Edges of one unit that are not drawn; ``share`` is theirs of the total |weight| of that unit."""

    unit: str
    n_edges: int
    n_left_out: int
    share: float


@dataclass(frozen=True)
class Drawing:
    """A graph ready to be drawn.

    ``edges`` are the drawn ones, weakest first, so that strong ones lie on top; ``nodes`` all but those whose edges are
    all left out, or the strongest; ``details`` by feature id, ``scales`` by unit; ``verdict`` is what a test came to.
    ``state`` is what a reader has done to the page, ``groups`` are proposed, ``boxes`` are groups by the id of the node
    that stands for each, ``whole`` is the graph of which a reader sees this, ``feature_pages`` is the folder of pages
    about features, if there is one.
    """

    graph: CircuitGraph
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    scales: Mapping[str, Scale]
    left_out: tuple[LeftOut, ...]
    details: Mapping[str, Details]
    scores: tuple[ScoreRecord, ...]
    verdict: VerdictRecord | None = None
    max_nodes: int | None = None
    state: State | None = None
    groups: tuple[Group, ...] = ()
    boxes: Mapping[str, NamedGroup] = field(default_factory=dict)
    whole: CircuitGraph | None = None
    feature_pages: Path | None = None

    @property
    def n_hidden_nodes(self) -> int:
        """Nodes that are not drawn: they are too weak, or all of their edges are left out."""
        return len(self.graph.nodes) - len(self.nodes)

    def scale(self, edge: Edge) -> Scale:
        """The scale on which the edge is drawn."""
        return self.scales[edge.unit]

    def strength(self, edge: Edge) -> float:
        """|weight| as a share of the largest of the same unit."""
        return self.scale(edge).strength(edge.weight)

    def token(self, node: Node) -> str | None:
        """The token at the node's position, or some of several with " | " between; a logit's own; None for nodes
        without one."""
        if node.token_id is not None:
            return self.graph.head.token_of(node.id)
        position = None if node.place is None else node.place.position
        return " | ".join(self.graph.head.tokens_at(position)) or None

    def trace(self, feature: str) -> Context | None:
        """The prompt with the activation of a feature at its tokens, without a BOS token; None where it is not known.

        Parts of characters are joined; the peak is where the feature is furthest from zero.
        """
        found = self._traces.get(feature)
        tokens = () if found is None else self.graph.head.tokens if found.tokens is None else found.tokens
        if found is None or len(tokens) != len(found.activations) or not tokens:
            return None
        first = 1 if self.graph.head.bos and len(tokens) > 1 else 0
        parts = pieces.joined(tokens[first:])
        values = pieces.furthest(found.activations[first:], parts)
        peak = max(range(len(values)), key=lambda index: abs(values[index]))
        return Context(tokens=tuple(part.text for part in parts), activations=tuple(values), peak=peak)

    @cached_property
    def _traces(self) -> dict[str, Trace]:
        return {trace.feature: trace for trace in self.graph.traces}

    def known(self, node: Node) -> Details | None:
        """What is known about the node's feature."""
        place = node.place
        return None if place is None else self.details.get(place.feature)


def draw(
    graph: CircuitGraph,
    *,
    details: Mapping[str, Details] | None = None,
    scores: Iterable[ScoreRecord] = (),
    verdict: VerdictRecord | None = None,
    max_edges: int | None = None,
    max_nodes: int | None = None,
) -> Drawing:
    """Choose the strongest edges, each relative to the largest of its unit; by default at most 300.

    max_nodes: draw only so many nodes beside the outputs, as `strongest_nodes` chooses them, and the edges between
    them, first those by which they reach the output. Raises InputError for a number that is not finite.
    """
    scores = tuple(scores)
    _require_finite(graph, scores)
    graph = sorted_graph(graph)
    units = dict.fromkeys(edge.unit for edge in graph.edges)
    scales = {unit: Scale(unit, max(abs(edge.weight) for edge in graph.edges if edge.unit == unit)) for unit in units}
    nodes, edges = _chosen(graph, scales, max_edges=MAX_EDGES if max_edges is None else max_edges, max_nodes=max_nodes)
    return Drawing(
        graph=graph,
        nodes=nodes,
        edges=edges,
        scales=scales,
        left_out=tuple(_left_out(unit, graph.edges, edges) for unit in units),
        details=dict(details or {}),
        scores=scores,
        verdict=verdict,
        max_nodes=max_nodes,
    )


def _chosen(
    graph: CircuitGraph, scales: Mapping[str, Scale], *, max_edges: int, max_nodes: int | None
) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
    """The nodes and edges that are drawn, the weakest edges first."""

    def strength(edge: Edge) -> float:
        return scales[edge.unit].strength(edge.weight)

    ids, ways = frozenset(node.id for node in graph.nodes), tuple[Edge, ...]()
    if max_nodes is not None:
        ids, ways = strongest_nodes(graph, max_nodes, strength=strength)
    between = [edge for edge in graph.edges if edge.source in ids and edge.target in ids]
    on_way = frozenset(ways)
    ranked = sorted(between, key=lambda edge: (edge not in on_way, -strength(edge)))
    kept = frozenset(ranked[:max_edges])
    chosen = sorted((edge for edge in between if edge in kept), key=lambda edge: -strength(edge))
    lost = _ends(ranked) - _ends(chosen)
    nodes = (node for node in graph.nodes if node.id in ids and (node.id not in lost or node.is_output))
    return tuple(nodes), tuple(reversed(chosen))


def _ends(edges: Iterable[Edge]) -> set[str]:
    return {end for edge in edges for end in (edge.source, edge.target)}


def _left_out(unit: str, edges: Iterable[Edge], chosen: Iterable[Edge]) -> LeftOut:
    every = [abs(edge.weight) for edge in edges if edge.unit == unit]
    kept = [abs(edge.weight) for edge in chosen if edge.unit == unit]
    missing, total = len(every) - len(kept), math.fsum(every)
    share = max(0.0, 1 - math.fsum(kept) / total) if missing and total > 0 else 0.0
    return LeftOut(unit, len(every), missing, share)


def _require_finite(graph: CircuitGraph, scores: Iterable[ScoreRecord]) -> None:
    head = graph.head
    values = {"metric_clean": head.metric_clean, "metric_baseline": head.metric_baseline}
    numbers = [(name, value) for name, value in values.items() if value is not None]
    numbers += [(f"effect of {node.id}", node.effect) for node in graph.nodes if node.effect is not None]
    numbers += [(f"activation of {node.id}", node.activation) for node in graph.nodes if node.activation is not None]
    numbers += [(f"edge {edge.source} -> {edge.target}", edge.weight) for edge in graph.edges]
    numbers += [(f"score {score.name}", score.value) for score in scores]
    for name, value in numbers:
        if not math.isfinite(value):
            raise InputError(
                f"graph '{head.name}': {name} is {value}",
                hint="make the graph again with --set model.dtype=float32",
            )
