"""The gradient graph: which nodes and edges are kept (Marks et al. 2024, arXiv:2403.19647).

From the hook points with a direct path to the output, the ``down`` most positive and most negative nodes by effect;
then, hook point by hook point upwards, the sources of the ``up`` most positive and most negative edges into each kept
node, cut to ``down`` of each sign and hook point by node effect. Nodes without a path to the output are dropped. Of
several prompts effects and edges are means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.activity import activity
from circuitcli.attribution.averages import Average, Piece
from circuitcli.attribution.edges import Target
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.mean_edges import PanelEdges
from circuitcli.attribution.mean_effects import PanelEffects, Total
from circuitcli.attribution.panel import Panel
from circuitcli.graphs import CircuitGraph, Edge, Node, connected_to_output, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings

Key = tuple[HookPoint, Target]
P = TypeVar("P")


@dataclass(frozen=True)
class Circuit:
    """What a search kept; ``totals`` of all nodes of each hook point, kept or not."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    totals: Mapping[HookPoint, Total]

    def graph(self, head: GraphRecord) -> CircuitGraph:
        """The nodes with a path to the output, and their edges."""
        return sorted_graph(connected_to_output(CircuitGraph(head, self.nodes, self.edges)))


def find_circuit(panel: Panel, settings: GraphSettings) -> Circuit:
    """The circuit behind what the panel's prompts have in common.

    Raises SettingsError for attribution patching of a metric that is flat at the clean run, InputError for effects that
    are not finite.
    """
    effects = effects_of_panel(panel, settings)
    edges = PanelEdges(effects)
    kept = _Kept()
    with task("effects and edges", total=len(panel.hooks), unit="hook points") as advance:
        for hook in reversed(panel.hooks):
            kept.totals[hook] = effects.total(hook)
            candidates = kept.candidates.get(hook, set()) | set(strongest_at_output(effects, hook, settings.down))
            nodes = select(effects, hook, candidates, settings.down)
            kept.add_nodes(hook, nodes)
            kept.add_edges_to_output(hook, effects.averages_to_output(hook, list(nodes)) if nodes else [], nodes)
            kept.add_edges(hook, strongest_edges(edges, hook, list(nodes), settings.up))
            advance(1, note=f"{hook}")
    return assembled(panel, kept)


def strongest_at_output(effects: PanelEffects, hook: HookPoint, down: int) -> list[Target]:
    """The nodes of a hook point with the largest effects of each sign; none if no direct path leads to the output."""
    best: Strongest[Piece] = Strongest(down)
    if hook in effects.coders and effects.reaches_output(hook):
        for means in effects.of_features(hook):
            best.add(means.piece, means.values.flatten())
    if effects.coders.writers(hook) and effects.reaches_output(effects.coders.group_of_error(hook)):
        for means in effects.of_error(hook):
            best.add(means.piece, means.values.flatten())
    return [piece.target(index) for piece, index, _ in best.found()]


def select(effects: PanelEffects, hook: HookPoint, candidates: Iterable[Target], down: int) -> dict[Target, Average]:
    """The candidates with the largest effects of each sign, the positive ones first, strongest first."""
    ranked = sorted(candidates, key=_rank)
    if not ranked:
        return {}
    valued = list(zip(effects.averages(hook, ranked), ranked, strict=True))
    valued.sort(key=lambda pair: (-abs(pair[0].value), _rank(pair[1])))
    positive = [pair for pair in valued if pair[0].value > 0][:down]
    negative = [pair for pair in valued if pair[0].value < 0][:down]
    return {target: effect for effect, target in positive + negative}


def strongest_edges(
    edges: PanelEdges, hook: HookPoint, targets: Sequence[Target], up: int
) -> list[tuple[Key, Target, Average]]:
    """Source, target and weight of the strongest edges of each sign into each of some nodes."""
    found: list[tuple[Key, Target, Average]] = []
    size = edges.targets_at_once(hook, targets)
    for begin in range(0, len(targets), size):
        some = targets[begin : begin + size]
        best: list[Strongest[Piece]] = [Strongest(up) for _ in some]
        for means in edges.into(hook, some):
            for row, one in enumerate(best):
                spread = None if means.spread is None else means.spread[:, row].flatten(1)
                one.add(means.piece, means.values[row].flatten(), spread)
        for target, one in zip(some, best, strict=True):
            for piece, index, weight, more in one.entries():
                found.append(((piece.hook, piece.target(index)), target, Average(weight, *more)))
    return found


@dataclass
class _Kept:
    """What the search has kept so far."""

    candidates: dict[HookPoint, set[Target]] = field(default_factory=dict)
    nodes: dict[Key, Average] = field(default_factory=dict)
    edges: list[tuple[Key, Key | None, Average]] = field(default_factory=list)
    totals: dict[HookPoint, Total] = field(default_factory=dict)

    def add_nodes(self, hook: HookPoint, nodes: Mapping[Target, Average]) -> None:
        """Keep these nodes."""
        self.nodes |= {(hook, target): effect for target, effect in nodes.items()}

    def add_edges_to_output(self, hook: HookPoint, weights: Sequence[Average], targets: Iterable[Target]) -> None:
        """Keep the edges from some nodes to the output, where there are any."""
        for target, weight in zip(targets, weights, strict=True):
            if weight.value != 0:
                self.edges.append(((hook, target), None, weight))

    def add_edges(self, hook: HookPoint, edges: Iterable[tuple[Key, Target, Average]]) -> None:
        """Keep edges into nodes of a hook point; their sources become candidates."""
        for source, target, weight in edges:
            self.candidates.setdefault(source[0], set()).add(source[1])
            self.edges.append((source, (hook, target), weight))


def assembled(panel: Panel, kept: _Kept) -> Circuit:
    """Nodes and edges by name, with how active the nodes are."""
    unit = panel.subject(0)[0].metric.unit
    nodes = []
    for hook in panel.hooks:
        here = {target: effect for (place, target), effect in kept.nodes.items() if place == hook}
        for (target, effect), active in zip(here.items(), activity(panel, hook, list(here)), strict=True):
            name = panel.node_id(hook, target.index, target.group)
            spread = {"standard_error": effect.standard_error, "active": active.active}
            nodes.append(Node(name, active.activation, effect.value, unit, **spread))
    edges = [
        Edge(
            panel.node_id(source[0], source[1].index, source[1].group),
            OUTPUT if target is None else panel.node_id(target[0], target[1].index, target[1].group),
            weight.value,
            unit,
            standard_error=weight.standard_error,
            active=weight.active,
        )
        for source, target, weight in kept.edges
        if source in kept.nodes
    ]
    return Circuit((*nodes, Node(OUTPUT)), tuple(edges), dict(sorted(kept.totals.items())))


def _rank(target: Target) -> tuple[int, int]:
    return (target.group, 2**62 if target.index is None else target.index)


class Strongest(Generic[P]):
    """The ``count`` largest positive and the ``count`` most negative values of all that were added, in pieces."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[bool, list[tuple[P, int, float, tuple[float, ...]]]] = {True: [], False: []}

    def add(self, piece: P, values: Float[Tensor, " n"], more: Float[Tensor, "m n"] | None = None) -> None:
        """Take in the values of a piece, with ``more`` numbers that belong to each; of equals those that came first
        stay."""
        both = [
            (piece, index, value, () if more is None else tuple(more[:, index].tolist()))
            for index, value in extremes(values, self._count)
        ]
        for sign, found in self._found.items():
            found += [entry for entry in both if (entry[2] > 0) == sign]
            found.sort(key=lambda entry: -abs(entry[2]))
            del found[self._count :]

    def entries(self) -> list[tuple[P, int, float, tuple[float, ...]]]:
        """Piece, index in it, value and more: the positive ones, then the negative ones, strongest first."""
        return [*self._found[True], *self._found[False]]

    def found(self) -> list[tuple[P, int, float]]:
        """`entries` without more."""
        return [(piece, index, value) for piece, index, value, _ in self.entries()]


def extremes(values: Float[Tensor, " n"], count: int) -> Sequence[tuple[int, float]]:
    """Index and value of the ``count`` largest positive and the ``count`` most negative values, strongest first."""
    found: list[tuple[int, float]] = []
    size = min(count, values.numel())
    for sign in (1.0, -1.0):
        top = (values * sign).topk(size)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found += [(index, sign * value) for index, value in pairs if value > 0]
    return found
