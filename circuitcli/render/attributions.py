"""Where a graph's effects are: heat maps over positions and hook points, and sums for each hook point."""

import math
from collections.abc import Callable, Sequence

from circuitcli.graphs import CircuitGraph, Node
from circuitcli.hookpoints import HookPoint, Position, position_order
from circuitcli.records import GraphRecord
from circuitcli.render.bars import Bars
from circuitcli.render.heatmaps import HeatMap, HeatMaps
from circuitcli.render.sites import INK, kind_of
from circuitcli.render.text import quoted, shortened

TOKEN_COLUMNS = 14
_HATCHES = {"residual stream": "", "attention": "////", "MLP": "...."}


def attribution_maps(graph: CircuitGraph) -> HeatMaps | None:
    """Summed effects of the graph's nodes at each position and hook point: of features, and of error terms if there are
    some; None for a graph without effects."""
    nodes = [node for node in graph.nodes if node.effect is not None and node.place is not None]
    if not nodes:
        return None
    hooks = sorted({node.place.hook for node in nodes if node.place})
    positions = _positions(nodes, graph.head)
    kinds = {
        "features": [node for node in nodes if node.place and not node.place.is_error],
        "error terms": [node for node in nodes if node.place and node.place.is_error],
    }
    return HeatMaps(
        [_map(f"{kind}", own, hooks, positions, unit=graph.head.unit) for kind, own in kinds.items() if own],
        columns=[place_name(position, graph.head) for position in positions],
        rows=[str(hook) for hook in hooks],
        x="position",
        y="hook point",
        title=f"Effects on {graph.head.metric} in {graph.head.name}",
        cell=(0.42, 0.26),
    )


def _positions(nodes: Sequence[Node], head: GraphRecord) -> list[Position]:
    found = {node.place.position for node in nodes if node.place}
    return sorted(found, key=lambda position: position_order(position, head.span_names or ()))


def place_name(position: Position, head: GraphRecord) -> str:
    """A position with its token, or of several prompts the first of its tokens; a named span; or all of them."""
    if position is None:
        return "all positions"
    tokens = head.tokens_at(position)
    return f"{position} {quoted(shortened(tokens[0], TOKEN_COLUMNS))}" if tokens else str(position)


def _map(
    title: str, nodes: Sequence[Node], hooks: Sequence[HookPoint], positions: Sequence[Position], *, unit: str
) -> HeatMap:
    sums: dict[tuple[HookPoint, Position], float] = {}
    for node in nodes:
        if node.place is not None:
            key = node.place.hook, node.place.position
            sums[key] = sums.get(key, 0.0) + (node.effect or 0.0)
    values = [[sums.get((hook, position)) for position in positions] for hook in hooks]
    total = math.fsum(sums.values())
    return HeatMap(
        f"{title}: {len(nodes)} nodes, {total:+.3g} {unit}", values, is_signed=True, label=f"effect ({unit})"
    )


def effect_bars(graph: CircuitGraph) -> Bars | None:
    """Effects summed at each hook point, of all nodes where the graph's head has them, beside those of the graph's own
    nodes; None for a graph without effects."""
    unit, own = graph.head.unit, [node for node in graph.nodes if node.effect is not None and node.place is not None]
    if not own:
        return None
    hooks = sorted({node.place.hook for node in own if node.place} | {*map(HookPoint.parse, graph.head.effects or ())})

    def of_graph(is_kind: Callable[[Node], bool]) -> list[float]:
        return [
            math.fsum(node.effect or 0.0 for node in own if node.place and node.place.hook == hook and is_kind(node))
            for hook in hooks
        ]

    panels: list[tuple[str, Sequence[float | int | None]]] = [
        (f"{graph.head.noun} of the graph ({unit})", of_graph(lambda node: node.kind == "feature")),
        (f"its error terms ({unit})", of_graph(lambda node: node.kind == "error")),
    ]
    every = graph.head.effects or {}
    for name, told in (("features", "all features"), ("errors", "all error terms"), ("gap", "gap of the sum")):
        values = [every.get(str(hook), {}).get(name) for hook in hooks]
        if any(value is not None for value in values):
            panels.append((f"{told} ({unit})", values))
    looks = [(INK[kind_of(hook.site)], _HATCHES[kind_of(hook.site)]) for hook in hooks]
    return Bars([*map(str, hooks)], panels, looks, f"Summed effects on {graph.head.metric} in {graph.head.name}")
