"""Groups of nodes as one node each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import fsum

from circuitcli.graphs.graph import CircuitGraph, Edge, Node


def collapsed(graph: CircuitGraph, groups: Iterable[Sequence[str]]) -> tuple[CircuitGraph, Mapping[str, Node]]:
    """The graph in which each group is one node, named as its member of the largest effect, and all members by name of
    theirs that stands for the group.

    Its effect and its edges are the sums of its members'; edges inside are left out, and what is no sum, as activations
    and standard errors, is not known. Groups have no node in common.
    """
    stands_for: dict[str, Node] = {}
    of_group = {}
    for members in groups:
        some = [graph.by_id[name] for name in members]
        strongest = max(some, key=lambda node: abs(_size(node)))
        of_group[strongest.id] = some
        stands_for |= dict.fromkeys(members, strongest)
    kept = [node for node in graph.nodes if stands_for.get(node.id, node).id == node.id]
    nodes = tuple(_sum(node, of_group[node.id]) if node.id in of_group else node for node in kept)
    return replace(graph, nodes=nodes, edges=tuple(_edges(graph, stands_for))), stands_for


def _size(node: Node) -> float:
    return (node.influence if node.effect is None else node.effect) or 0.0


def _sum(node: Node, members: Sequence[Node]) -> Node:
    units = {member.unit for member in members if member.effect is not None}
    effects = [member.effect for member in members if member.effect is not None]
    influences = [member.influence for member in members if member.influence is not None]
    return Node(
        node.id,
        effect=fsum(effects) if len(units) == 1 else None,
        unit=units.pop() if len(units) == 1 else None,
        influence=fsum(influences) if influences else None,
    )


def _edges(graph: CircuitGraph, stands_for: Mapping[str, Node]) -> Iterable[Edge]:
    """Edges between what is left; those that are the same now are added up, of each unit by itself."""
    joined: dict[tuple[str, str, str], list[Edge]] = {}
    for edge in graph.edges:
        ends = [name if name not in stands_for else stands_for[name].id for name in (edge.source, edge.target)]
        if ends[0] != ends[1]:
            joined.setdefault((ends[0], ends[1], edge.unit), []).append(edge)
    for (source, target, unit), edges in joined.items():
        if len(edges) == 1:
            yield replace(edges[0], source=source, target=target)
        else:
            yield Edge(source, target, fsum(edge.weight for edge in edges), unit)
