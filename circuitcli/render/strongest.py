"""Which boxes a small picture of a large graph has: the strongest, and what lies on their ways to the output."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from circuitcli.graphs import CircuitGraph, Edge, Node


def strength_of(graph: CircuitGraph) -> Callable[[Node], float]:
    """How strong a node is: by |effect|, of graphs without effects by influence, else by its strongest edge."""
    for name in ("effect", "influence"):
        if any(getattr(node, name) is not None for node in graph.nodes):
            return lambda node: abs(getattr(node, name) or 0.0)
    strongest: dict[str, float] = {}
    for edge in graph.edges:
        for end in (edge.source, edge.target):
            strongest[end] = max(strongest.get(end, 0.0), abs(edge.weight))
    return lambda node: strongest.get(node.id, 0.0)


def strongest_nodes(
    graph: CircuitGraph, n_nodes: int, *, strength: Callable[[Edge], float]
) -> tuple[frozenset[str], tuple[Edge, ...]]:
    """Ids of at most so many nodes beside the outputs, which are all kept, and the edges by which they reach one.

    The graph's nodes are in the order of the model. The strongest come first, each with its best way to an output: that
    whose weakest edge is strongest. Where a way has no room the next node is tried. A node without a way stands alone.
    """
    onward = _best_ways(graph, strength)
    kept = {node.id for node in graph.nodes if node.is_output}
    edges: dict[Edge, None] = {}
    room, rank = n_nodes + len(kept), strength_of(graph)
    for node in sorted(graph.nodes, key=lambda node: -rank(node)):
        way = [*_way(node.id, onward)]
        new = {node.id, *(edge.target for edge in way)} - kept
        if len(kept) + len(new) <= room:
            kept |= new
            edges |= dict.fromkeys(way)
    return frozenset(kept), tuple(edges)


def _best_ways(graph: CircuitGraph, strength: Callable[[Edge], float]) -> Mapping[str, Edge]:
    """The first edge of each node's best way to an output."""
    widest = {node.id: float("inf") for node in graph.nodes if node.is_output}
    onward: dict[str, Edge] = {}
    by_source = _by_source(graph.edges)
    # Edges go forward, so that the ways of all targets are known before those of their sources.
    for node in reversed(graph.nodes):
        ways = [edge for edge in by_source.get(node.id, ()) if edge.target in widest]
        if node.id not in widest and ways:
            best = max(ways, key=lambda edge: (min(strength(edge), widest[edge.target]), strength(edge)))
            onward[node.id] = best
            widest[node.id] = min(strength(best), widest[best.target])
    return onward


def _by_source(edges: Iterable[Edge]) -> Mapping[str, Sequence[Edge]]:
    found: dict[str, list[Edge]] = {}
    for edge in edges:
        found.setdefault(edge.source, []).append(edge)
    return found


def _way(name: str, onward: Mapping[str, Edge]) -> Iterable[Edge]:
    while name in onward:
        yield onward[name]
        name = onward[name].target
