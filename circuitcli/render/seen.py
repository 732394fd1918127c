"""A graph as the reader of its page sees it: what pictures show of a state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Edge, sorted_graph
from circuitcli.graphs.collapsing import collapsed
from circuitcli.graphs.ranking import first_edges, first_nodes
from circuitcli.render.state import NamedGroup, State

BY_HAND = {"label_source": "hand", "label_score": None}


@dataclass(frozen=True)
class Seen:
    """What is left of a graph; ``boxes`` are the closed groups by the id of the node that stands for each."""

    graph: CircuitGraph
    boxes: Mapping[str, NamedGroup]


def seen(graph: CircuitGraph, state: State) -> Seen:
    """The first nodes and edges, without boxes that have no edge left, and closed groups as one node each."""
    graph = sorted_graph(graph)
    left = _first(graph, state)
    closed = [
        group.model_copy(update={"members": members})
        for group in state.groups
        if not group.open and len(members := tuple(name for name in group.members if name in left.by_id)) > 1
    ]
    joined, stands_for = collapsed(left, [group.members for group in closed])
    boxes = {stands_for[group.members[0]].id: group for group in closed}
    return Seen(joined, boxes)


def _first(graph: CircuitGraph, state: State) -> CircuitGraph:
    """As many nodes and edges as the state says, of kinds that it does not hide; what is pinned stays."""
    nodes = graph.nodes if state.nodes is None else first_nodes(graph, state.nodes, by=state.by)
    edges = graph.edges if state.edges is None else first_edges(graph, state.edges, by=state.by)
    allowed = {node.id for node in nodes if node.kind not in state.hidden}
    kept = frozenset(edge for edge in edges if edge.source in allowed and edge.target in allowed)
    had, have = _ends(graph.edges), _ends(kept)
    shown = {
        node.id
        for node in graph.nodes
        if node.id == state.pinned
        or (node.id in allowed and (node.id in have or node.place is None or node.id not in had))
    }
    return replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.id in shown),
        edges=tuple(edge for edge in graph.edges if edge in kept),
    )


def _ends(edges: Iterable[Edge]) -> frozenset[str]:
    return frozenset(end for edge in edges for end in (edge.source, edge.target))


def labelled(details: Mapping[str, Details], state: State) -> dict[str, Details]:
    """What is known of features, with the labels that the reader wrote, which are by hand."""
    written = {
        name: details.get(name, Details(id=name)).model_copy(update={"label": text, **BY_HAND})
        for name, text in state.labels.items()
    }
    return {**details, **written}
