"""The gradient graph: which nodes and edges are kept (after Marks et al. 2024, arXiv:2403.19647).

From the last hook point upwards: at each the candidates are the ``down`` most positive and most negative nodes by
effect, whatever edges they have (a saturated node has edges near zero), those with the strongest edges straight to the
output, and the sources of the ``up`` most positive and most negative edges into each node that is kept already. Of
these the ``down`` strongest of each sign stay, by effect or by their largest edge to what is kept, so that a node whose
effects cancel is not lost; of what leads to such a node, where the gradient says nothing, the sources are followed by
what they bring to its largest edge. With ``strongest`` so many nodes of all hook points together stay
instead, and those with edges as large as the effect of the last of them.

Nodes and edges below a least share of ``m(clean) - m(all at baseline)`` are left out: quotas alone would fill up with
rounding. Of several prompts effects and edges are means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.activity import activity
from circuitcli.attribution.attention.gradient_edges import panel_parts
from circuitcli.attribution.averages import Average, Piece
from circuitcli.attribution.edges import Target
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.extremes import Strongest
from circuitcli.attribution.mean_edges import PanelEdges
from circuitcli.attribution.mean_effects import PanelEffects, Total
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.strongest_edges import FAINT, Key, edges_into_faint, edges_to_output, strongest_edges
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings


@dataclass(frozen=True)
class Circuit:
    """What a search kept; ``totals`` of all nodes of each hook point, kept or not. share_kept: of the sizes of all
    effects, that of the nodes that are kept; None where there are no effects."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    totals: Mapping[HookPoint, Total]
    share_kept: float | None = None

    def graph(self, head: GraphRecord) -> CircuitGraph:
        """The circuit as a graph, in the order of the model."""
        return sorted_graph(CircuitGraph(head, self.nodes, self.edges))


def find_circuit(panel: Panel, settings: GraphSettings) -> Circuit:
    """The circuit behind what the panel's prompts have in common.

    Raises SettingsError for attribution patching of a metric that is flat at the clean run, InputError for effects that
    are not finite.
    """
    return circuit_of(effects_of_panel(panel, settings))


def circuit_of(effects: PanelEffects) -> Circuit:
    """The circuit that effects of nodes lead to. Raises as `find_circuit` does."""
    panel, settings = effects.panel, effects.settings
    edges, kept = PanelEdges(effects), _Kept(_Rules.of(effects))
    with task("effects and edges", total=len(panel.hooks), unit="hook points") as advance:
        for hook in reversed(panel.hooks):
            kept.totals[hook] = effects.total(hook)
            nodes = kept.add_nodes(effects, hook)
            kept.add_edges_to_output(hook, effects.averages_to_output(hook, nodes) if nodes else [], nodes)
            faint = kept.faint(hook, nodes)
            strong = [node for node in nodes if node not in faint]
            kept.add_edges(hook, strongest_edges(edges, hook, strong, settings.up, least=kept.rules.least))
            kept.add_edges_into_faint(hook, edges_into_faint(edges, hook, faint, settings.up, least=kept.rules.least))
            advance(1, note=f"{hook}")
    circuit = assembled(panel, kept)
    return replace(circuit, edges=_with_heads(effects, kept, circuit.edges)) if settings.heads else circuit


def _with_heads(effects: PanelEffects, kept: "_Kept", edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges that were assembled, those between nodes with their parts by head."""
    ends = [(source, target) for source, target, _ in kept.edges if source in kept.nodes]
    between = {number: (source, target) for number, (source, target) in enumerate(ends) if target is not None}
    if not between:
        return tuple(edges)
    parts = panel_parts(effects, list(between.values()))
    told = dict(zip(between, parts.told([edges[number] for number in between]), strict=True))
    return tuple(told.get(number, edge) for number, edge in enumerate(edges))


@dataclass(frozen=True)
class _Rules:
    """What decides which nodes are kept. least, least_node: sizes that edges and nodes must have. count: how many of
    each sign are looked at by their effects; down: how many of each sign a hook point keeps, None for all."""

    least: float
    least_node: float
    count: int
    down: int | None

    @classmethod
    def of(cls, effects: PanelEffects) -> "_Rules":
        """Those of settings: shares are of what there is to explain."""
        settings = effects.settings
        least = least_size(effects.panel, settings)
        if settings.strongest is None:
            return cls(least, least, settings.down, settings.down)
        return cls(least, max(least, _size_of_strongest(effects, settings.strongest)), settings.strongest, None)


def _size_of_strongest(effects: PanelEffects, count: int) -> float:
    """The size of the effect that so many nodes of all hook points have at least; 0 where there are fewer."""
    best: Strongest[Piece] = Strongest(count)
    for hook in effects.panel.hooks:
        for piece, values in all_effects(effects, hook):
            best.add(piece, values)
    sizes = sorted((abs(value) for _, _, value in best.found()), reverse=True)
    return sizes[count - 1] if len(sizes) >= count else 0.0


def least_size(panel: Panel, settings: GraphSettings) -> float:
    """The size that nodes and edges of a graph must have, in the metric's unit."""
    share = settings.min_share * abs(panel.behaviour) if settings.min_share else 0.0
    return max(share, settings.min_effect)


def all_effects(effects: PanelEffects, hook: HookPoint) -> Iterable[tuple[Piece, Float[Tensor, " n"]]]:
    """Mean effects of everything that a hook point names, in pieces."""
    if hook in effects.coders:
        yield from ((means.piece, means.values.flatten()) for means in effects.of_features(hook))
    if effects.coders.writers(hook):
        yield from ((means.piece, means.values.flatten()) for means in effects.of_error(hook))


def select(
    effects: PanelEffects,
    hook: HookPoint,
    candidates: Mapping[Target, float],
    *,
    down: int | None,
    least: float,
) -> dict[Target, Average]:
    """The strongest candidates of each sign, the positive ones first, strongest first, without those below ``least``.

    candidates: with the size of the largest edge of each. down: how many of each sign; None for all.
    """
    ranked = sorted(candidates, key=_rank)
    if not ranked:
        return {}
    valued = [
        (max(abs(effect.value), candidates[target]), effect, target)
        for effect, target in zip(effects.averages(hook, ranked), ranked, strict=True)
    ]
    valued = [entry for entry in valued if entry[0] >= least and entry[0] > 0]
    valued.sort(key=lambda entry: (-entry[0], _rank(entry[2])))
    positive = [entry for entry in valued if entry[1].value > 0][:down]
    others = [entry for entry in valued if entry[1].value <= 0][:down]
    return {target: effect for _, effect, target in positive + others}


@dataclass
class _Kept:
    """What the search has kept so far."""

    rules: _Rules
    candidates: dict[HookPoint, dict[Target, float]] = field(default_factory=dict)
    nodes: dict[Key, Average] = field(default_factory=dict)
    edges: list[tuple[Key, Key | None, Average]] = field(default_factory=list)
    totals: dict[HookPoint, Total] = field(default_factory=dict)
    size_of_all: float = 0.0

    def add_nodes(self, effects: PanelEffects, hook: HookPoint) -> list[Target]:
        """Choose nodes of a hook point, by their effects and the edges that are kept already."""
        rules, found = self.rules, dict(self.candidates.get(hook, {}))
        best: Strongest[Piece] = Strongest(rules.count)
        for piece, values in all_effects(effects, hook):
            self.size_of_all += float(values.abs().sum())
            best.add(piece, values)
        for target, size in edges_to_output(effects, hook, rules.count, least=rules.least_node).items():
            found[target] = max(found.get(target, 0.0), size)
        for piece, index, _ in best.found():
            found.setdefault(piece.target(index), 0.0)
        nodes = select(effects, hook, found, down=rules.down, least=rules.least_node)
        self.nodes |= {(hook, target): effect for target, effect in nodes.items()}
        return list(nodes)

    def add_edges_to_output(self, hook: HookPoint, weights: Sequence[Average], targets: Iterable[Target]) -> None:
        """Keep the edges from some nodes to the output, where there are any."""
        for target, weight in zip(targets, weights, strict=True):
            if weight.value != 0 and abs(weight.value) >= self.rules.least:
                self.edges.append(((hook, target), None, weight))

    def add_edges(self, hook: HookPoint, edges: Iterable[tuple[Key, Target, Average]]) -> None:
        """Keep edges into nodes of a hook point; their sources become candidates."""
        for source, target, weight in edges:
            self._follow(source, abs(weight.value))
            self.edges.append((source, (hook, target), weight))

    def faint(self, hook: HookPoint, nodes: Iterable[Target]) -> dict[Target, float]:
        """Of some features that are kept for their edges, as their effects cancel, the size of the largest edge."""
        sizes = self.candidates.get(hook, {})
        return {
            target: sizes[target]
            for target in nodes
            if target.index is not None and abs(self.nodes[hook, target].value) < FAINT * sizes.get(target, 0.0)
        }

    def add_edges_into_faint(self, hook: HookPoint, edges: Iterable[tuple[Key, Target, Average, float]]) -> None:
        """Keep edges into such features; their sources become candidates by what they bring to the largest edge."""
        for source, target, weight, size in edges:
            self._follow(source, size)
            self.edges.append((source, (hook, target), weight))

    def _follow(self, source: Key, size: float) -> None:
        here = self.candidates.setdefault(source[0], {})
        here[source[1]] = max(here.get(source[1], 0.0), size)


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
    own = sum(abs(effect.value) for effect in kept.nodes.values())
    share = own / kept.size_of_all if kept.size_of_all > 0 else None
    return Circuit((*nodes, Node(OUTPUT)), tuple(edges), dict(sorted(kept.totals.items())), share)


def _rank(target: Target) -> tuple[int, int]:
    return (target.group, 2**62 if target.index is None else target.index)
