"""The gradient graph: which nodes and edges are kept.

From the hook points with a direct path to the output, the ``down`` most positive and most negative nodes by effect;
then, hook point by hook point upwards, the sources of the ``up`` most positive and most negative edges into each kept
node, cut to ``down`` of each sign and hook point by node effect. Nodes without a path to the output are dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.edges import Incoming, Target, incoming, sources_of, to_output
from circuitcli.attribution.gradients import Effects, node_effects
from circuitcli.attribution.subject import Subject
from circuitcli.graphs import CircuitGraph, Edge, Node, connected_to_output, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.saes.base import strongest
from circuitcli.settings.graph import GraphSettings

Key = tuple[HookPoint, Target]


@dataclass
class _Found:
    """What the search has kept so far."""

    candidates: dict[HookPoint, set[Target]] = field(default_factory=dict)
    kept: dict[HookPoint, list[Target]] = field(default_factory=dict)
    edges: list[tuple[Key, Key, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """One search for the circuit of a subject; ``positions`` is all, last or sum."""

    subject: Subject
    baseline: Baseline
    settings: GraphSettings
    positions: str

    def effects(self) -> dict[HookPoint, Effects]:
        """Node effects of every spliced hook point."""
        chosen = self.settings
        return node_effects(
            self.subject, self.baseline, method=chosen.method, steps=chosen.ig_steps, batch_size=chosen.batch_size
        )

    def graph(self, head: GraphRecord, effects: dict[HookPoint, Effects]) -> CircuitGraph:
        """The circuit."""
        found = _Found()
        output = to_output(
            self.subject,
            effects,
            self.baseline,
            method=self.settings.method,
            steps=self.settings.ig_steps,
            batch_size=self.settings.batch_size,
        )
        for hook in output:
            found.candidates[hook] = set(self._strongest(effects[hook], self.settings.down))
        with task("edges", total=len(self.subject.hooks), unit="hook points") as advance:
            for hook in reversed(self.subject.hooks):
                self._climb(hook, effects[hook], found)
                advance(1, note=f"{hook}")
        return self._assembled(head, effects, output, found)

    def _climb(self, hook: HookPoint, effects: Effects, found: _Found) -> None:
        """Keep the best candidates of a hook point and follow their strongest edges upwards."""
        kept = self._cut(found.candidates.get(hook, ()), effects)
        found.kept[hook] = kept
        live = [target for target in kept if self._is_live(hook, target)]
        batches = incoming(self.subject, hook, live, effects, self.baseline, batch_size=self._rows(hook))
        for targets, sources in batches:
            for row, target in enumerate(targets):
                for source, end, weight in self._strongest_edges(sources, row):
                    found.candidates.setdefault(source, set()).add(end)
                    found.edges.append(((source, end), (hook, target), weight))

    def _rows(self, hook: HookPoint) -> int:
        """Targets in one backward pass; the widest code matrix of a batch stays under a quarter of a gigabyte."""
        d_sae = max(self.subject.saes[source].d_sae for source in [*sources_of(self.subject.hooks, hook), hook])
        return max(1, min(self.settings.batch_size, 2**26 // (self.subject.prompt.n_spliced * d_sae)))

    def _is_live(self, hook: HookPoint, target: Target) -> bool:
        """Whether a node can have incoming edges: the error, or a feature that is active in the clean run."""
        if target.index is None:
            return True
        codes = self.subject.coded[hook].codes[0, :, target.index]
        return bool((codes if target.position is None else codes[target.position]).any())

    def _flat(self, features: Tensor, error: Tensor) -> Float[Tensor, "position nodes"]:
        """Values of all nodes of a hook point, the error last; one row for each position that has nodes of its own."""
        values = torch.cat([features, error[:, None]], dim=-1)  # (position, d_sae + 1)
        if self.positions == "sum":
            return values.sum(dim=0, keepdim=True)
        return values[-1:] if self.positions == "last" else values

    def _target(self, flat: int, width: int) -> Target:
        """The node at an index of the flattened values."""
        row, index = divmod(flat, width)
        position = None if self.positions == "sum" else row
        if self.positions == "last":
            position = self.subject.prompt.n_spliced - 1
        return Target(None if index == width - 1 else index, position)

    def value(self, target: Target, features: Tensor, error: Tensor) -> float:
        """The value of one node, summed over positions if the node is."""
        values = error if target.index is None else features[:, target.index]
        return float(values.sum() if target.position is None else values[target.position])

    def _strongest(self, effects: Effects, count: int) -> list[Target]:
        values = self._flat(effects.features, effects.error)
        width = values.shape[1]
        return [self._target(index, width) for index, _ in extremes(values.flatten(), count)]

    def _cut(self, candidates: Iterable[Target], effects: Effects) -> list[Target]:
        valued = [(self.value(target, effects.features, effects.error), target) for target in candidates]
        valued.sort(key=lambda pair: (-abs(pair[0]), _rank(pair[1])))
        positive = [target for value, target in valued if value > 0][: self.settings.down]
        negative = [target for value, target in valued if value < 0][: self.settings.down]
        return positive + negative

    def _strongest_edges(self, sources: dict[HookPoint, Incoming], row: int) -> list[tuple[HookPoint, Target, float]]:
        """The strongest edges of each sign into one target, over all its sources."""
        flats = [self._flat(edges.features[row], edges.error[row]) for edges in sources.values()]
        if not flats:
            return []
        everything = torch.cat([flat.flatten() for flat in flats])
        bounds = torch.tensor([0, *(flat.numel() for flat in flats)]).cumsum(0).tolist()
        hooks = list(sources)
        strongest = []
        for index, weight in extremes(everything, self.settings.up):
            number = next(n for n, bound in enumerate(bounds[1:]) if index < bound)
            strongest.append((hooks[number], self._target(index - bounds[number], flats[number].shape[1]), weight))
        return strongest

    def _assembled(
        self,
        head: GraphRecord,
        effects: dict[HookPoint, Effects],
        output: dict[HookPoint, Effects],
        found: _Found,
    ) -> CircuitGraph:
        unit = self.subject.metric.unit
        kept = {(hook, target) for hook, targets in found.kept.items() for target in targets}
        nodes = [self._node(hook, target, effects[hook], unit) for hook, target in kept]
        edges = [
            Edge(self.node_id(*source), self.node_id(*target), weight, unit)
            for source, target, weight in found.edges
            if source in kept and target in kept
        ]
        for hook, target in kept:
            if hook in output:
                weight = self.value(target, output[hook].features, output[hook].error)
                if weight != 0:
                    edges.append(Edge(self.node_id(hook, target), OUTPUT, weight, unit))
        graph = CircuitGraph(head, (*nodes, Node(OUTPUT)), tuple(edges))
        return sorted_graph(connected_to_output(graph))

    def node_id(self, hook: HookPoint, target: Target) -> str:
        """The node's name; positions count from the start of the whole text."""
        position = None if target.position is None else target.position + self.subject.prompt.first
        return str(NodeId(hook, target.index, position))

    def _node(self, hook: HookPoint, target: Target, effects: Effects, unit: str) -> Node:
        activation = None
        if target.index is not None:
            codes = self.subject.coded[hook].codes[0, :, target.index]
            activation = float(strongest(codes) if target.position is None else codes[target.position])
        return Node(self.node_id(hook, target), activation, self.value(target, effects.features, effects.error), unit)


def _rank(target: Target) -> tuple[int, int]:
    return (-1 if target.position is None else target.position, 2**62 if target.index is None else target.index)


def extremes(values: Float[Tensor, " n"], count: int) -> Sequence[tuple[int, float]]:
    """Index and value of the ``count`` largest positive and the ``count`` most negative values, strongest first."""
    found: list[tuple[int, float]] = []
    size = min(count, values.numel())
    for sign in (1.0, -1.0):
        top = (values * sign).topk(size)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found += [(index, sign * value) for index, value in pairs if value > 0]
    return found
