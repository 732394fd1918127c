"""The naive graph put together: sources, measured hook points, threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcli.attribution.ablation import Ablated, Source, ablate, live_sources, pinned_sources
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.saes.base import CODES_AT_ONCE, strongest
from circuitcli.settings.graph import GraphSettings

ACTIVATION = "activation"


@dataclass(frozen=True)
class NaivePart:
    """Nodes and edges from ablating one hook point, with the size of what the threshold dropped."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    kept_total: float
    dropped_total: float


@dataclass(frozen=True)
class NaiveSearch:
    """Ablations of a subject's live or pinned nodes; ``positions`` is all, last or sum."""

    subject: Subject
    baseline: Baseline
    settings: GraphSettings
    positions: str
    pins: Mapping[HookPoint, Sequence[int]]
    seed: int

    def __post_init__(self) -> None:
        for hook in self.pins:
            if hook not in self.subject.saes:
                spliced = " ".join(str(hook) for hook in self.subject.hooks)
                raise InputError(f"pinned hook point {hook} is not in the circuit", hint=f"it has {spliced}")

    @property
    def threshold(self) -> float:
        """Edges must be larger than this."""
        return 2.0**self.settings.threshold_exp

    def measured(self, hook: HookPoint) -> list[HookPoint]:
        """The hook points whose features are measured: those of the next layer of the slice, or of all later layers."""
        stage = hook.order[0]
        later = sorted({other.order[0] for other in self.subject.hooks if other.order[0] > stage})
        wanted = set(later if self.settings.to == "all" else later[:1])
        return [other for other in self.subject.hooks if other.order[0] in wanted]

    def sources(self, hook: HookPoint) -> list[Source]:
        """What is ablated at a hook point: the pins, else all that is live, thinned at the first layer."""
        live = live_sources(self.subject, hook, self.baseline, positions=self.positions)
        if hook in self.pins:
            where = "at the last position" if self.positions == "last" else "in this prompt"
            return pinned_sources(self.subject, hook, self.pins[hook], live, where=where)
        if hook.order[0] > self.subject.hooks[0].order[0] or self.settings.thin == 1.0:
            return live
        count = max(1, math.floor(self.settings.thin * len(live)))
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(self.seed))
        return [live[index] for index in sorted(order[:count].tolist())]

    def part(self, hook: HookPoint) -> NaivePart:
        """Ablate everything at one hook point."""
        nodes: dict[str, Node] = {}
        edges: list[Edge] = []
        kept = dropped = 0.0
        sources, measured = self.sources(hook), self.measured(hook)
        with task(f"ablate {hook}", total=len(sources), unit="ablations") as advance:
            for batch in ablate(
                self.subject,
                hook,
                sources,
                self.baseline,
                measured=measured,
                batch_size=self._rows(measured),
            ):
                sums = self._collect(hook, batch, nodes, edges, is_last=not measured)
                kept, dropped = kept + sums[0], dropped + sums[1]
                advance(len(batch.sources))
        return NaivePart(tuple(nodes.values()), tuple(edges), kept, dropped)

    def _rows(self, measured: Sequence[HookPoint]) -> int:
        """Ablations in one pass, so that the codes that they are measured by stay under an eighth of a gigabyte."""
        widest = max((self.subject.saes[hook].d_sae for hook in measured), default=1)
        return max(1, min(self.settings.batch_size, CODES_AT_ONCE // (self.subject.prompt.n_spliced * widest)))

    def graph(self, head: GraphRecord, parts: Sequence[NaivePart]) -> CircuitGraph:
        """All parts in one graph, without the nodes that no edge touches."""
        edges = tuple(edge for part in parts for edge in part.edges)
        touched = {end for edge in edges for end in (edge.source, edge.target)} | {OUTPUT}
        named: dict[str, Node] = {OUTPUT: Node(OUTPUT)}
        # A node's own part comes with its effect; as a mere target it has only an activation.
        for part in parts:
            for node in part.nodes:
                if node.id not in named or named[node.id].effect is None:
                    named[node.id] = node
        return sorted_graph(CircuitGraph(head, tuple(named[name] for name in touched), edges))

    def _collect(
        self, hook: HookPoint, batch: Ablated, nodes: dict[str, Node], edges: list[Edge], *, is_last: bool
    ) -> tuple[float, float]:
        """Add a batch's nodes and edges; returns the total size of kept and of dropped edges."""
        unit = self.subject.metric.unit
        check_finite(batch.effect.tolist(), f"the metric without a node of {hook}")
        names = [self._name(hook, source.index, source.position) for source in batch.sources]
        for name, source, effect in zip(names, batch.sources, batch.effect.tolist(), strict=True):
            nodes[name] = Node(name, self._activation(hook, source.index, source.position), effect, unit)
            if is_last and abs(effect) > self.threshold:
                edges.append(Edge(name, OUTPUT, effect, unit))
        kept = dropped = 0.0
        for other, codes in batch.codes.items():
            weights = self._weights(other, codes)
            strong = weights.abs() > self.threshold
            kept += float(weights[strong].abs().sum())
            dropped += float(weights[~strong].abs().sum())
            check_finite((kept, dropped), f"what {hook} changes at {other}")
            for row, position, index in strong.nonzero().tolist():
                where = {"all": position, "last": self.subject.prompt.n_spliced - 1}.get(self.positions)
                target = self._name(other, index, where)
                nodes.setdefault(target, Node(target, self._activation(other, index, where), None, None))
                edges.append(Edge(names[row], target, float(weights[row, position, index]), ACTIVATION))
        return kept, dropped

    def _weights(self, hook: HookPoint, codes: Tensor) -> Tensor:
        """What each source contributes to each feature, (source, position or 1, d_sae)."""
        weights = self.subject.coded[hook].codes - codes
        if self.positions == "sum":
            return weights.sum(dim=1, keepdim=True)
        return weights[:, -1:] if self.positions == "last" else weights

    def _name(self, hook: HookPoint, index: int | None, position: int | None) -> str:
        return str(NodeId(hook, index, None if position is None else position + self.subject.prompt.first))

    def _activation(self, hook: HookPoint, index: int | None, position: int | None) -> float | None:
        if index is None:
            return None
        codes = self.subject.coded[hook].codes[0, :, index]
        return float(strongest(codes) if position is None else codes[position])
