"""A graph as the reader of its page sees it: what pictures show of a state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Edge, Node, restricted
from circuitcli.graphs.collapsing import collapsed
from circuitcli.render.state import NamedGroup, State


@dataclass(frozen=True)
class Seen:
    """What is left of a graph; ``boxes`` are the closed groups by the id of the node that stands for each."""

    graph: CircuitGraph
    boxes: Mapping[str, NamedGroup]


def seen(graph: CircuitGraph, state: State) -> Seen:
    """What thresholds leave of the graph, closed groups as one node each, and boxes without a drawn edge left out."""
    kept = restricted(graph, (node.id for node in graph.nodes if _is_seen(node, state)))
    edges = kept.edges if state.edge_share is None else strongest(graph.edges, state.edge_share)
    ids = kept.by_id
    left = replace(kept, edges=tuple(edge for edge in edges if edge.source in ids and edge.target in ids))
    had, have = _ends(graph.edges), _ends(left.edges)
    left = restricted(left, (node.id for node in left.nodes if node.is_output or node.id in have or node.id not in had))
    closed = [
        group.model_copy(update={"members": members})
        for group in state.groups
        if not group.open and len(members := tuple(name for name in group.members if name in left.by_id)) > 1
    ]
    joined, stands_for = collapsed(left, [group.members for group in closed])
    boxes = {stands_for[group.members[0]].id: group for group in closed}
    return Seen(joined, boxes)


def _is_seen(node: Node, state: State) -> bool:
    if node.kind == "output":
        return True
    is_weak = state.min_effect is not None and node.effect is not None and abs(node.effect) < state.min_effect
    return node.kind not in state.hidden and not (is_weak and not node.is_output)


def strongest(edges: Iterable[Edge], share: float) -> tuple[Edge, ...]:
    """Of each unit the strongest edges that have this share of the total |weight|, in the order given."""
    by_unit: dict[str, list[Edge]] = {}
    for edge in edges:
        by_unit.setdefault(edge.unit, []).append(edge)
    kept: set[tuple[str, str]] = set()
    for some in by_unit.values():
        ranked = sorted(some, key=lambda edge: -abs(edge.weight))
        sums = list(accumulate(abs(edge.weight) for edge in ranked))
        # As many as are needed, so that the last one passes the share.
        kept |= {
            (edge.source, edge.target)
            for edge, total in zip(ranked, sums, strict=True)
            if total - abs(edge.weight) < share * sums[-1]
        }
    return tuple(edge for some in by_unit.values() for edge in some if (edge.source, edge.target) in kept)


def _ends(edges: Iterable[Edge]) -> frozenset[str]:
    return frozenset(end for edge in edges for end in (edge.source, edge.target))


def labelled(details: Mapping[str, Details], state: State) -> dict[str, Details]:
    """What is known of features, with the labels that the reader wrote."""
    written = {
        name: details[name].model_copy(update={"label": text}) if name in details else Details(id=name, label=text)
        for name, text in state.labels.items()
    }
    return {**details, **written}
