"""The naive graph put together: sources, measured hook points, threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.ablation import ablate, live_sources, pinned_sources
from circuitcli.attribution.activity import activity, differing
from circuitcli.attribution.averages import Average, average
from circuitcli.attribution.changes import Board, Comparison, OnePrompt, SeveralPrompts
from circuitcli.attribution.edges import Target
from circuitcli.attribution.memory import budget_of, in_batches, rows_at_once
from circuitcli.attribution.panel import Panel, wide
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint
from circuitcli.models.partial import first_block
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings

ACTIVATION = "activation"


@dataclass(frozen=True)
class NaivePart:
    """Nodes and edges from ablating what one hook point names, with the size of what the threshold dropped."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    kept_total: float
    dropped_total: float


@dataclass(frozen=True)
class NaiveSearch:
    """Ablations of a panel's live or pinned nodes."""

    panel: Panel
    settings: GraphSettings
    pins: Mapping[HookPoint, Sequence[int]]
    seed: int

    def __post_init__(self) -> None:
        for hook in self.pins:
            if hook not in self.panel.coders:
                spliced = " ".join(str(hook) for hook in self.panel.coders)
                raise InputError(f"pinned hook point {hook} is not in the circuit", hint=f"it has {spliced}")

    @property
    def threshold(self) -> float:
        """Edges must be larger than this."""
        return 2.0**self.settings.threshold_exp

    def measured(self, hook: HookPoint) -> list[HookPoint]:
        """The hook points whose features are measured: those of the next layer of the slice, or of all later layers."""
        stage = hook.order[0]
        later = sorted({other.order[0] for other in self.panel.coders if other.order[0] > stage})
        wanted = set(later if self.settings.to == "all" else later[:1])
        return [other for other in self.panel.coders if other.order[0] in wanted]

    def sources(self, hook: HookPoint) -> list[Target]:
        """What is ablated at a hook point: the pins, else all that is live, thinned at the first layer."""
        live = live_sources(self.panel, hook)
        if hook in self.pins:
            where = "in this prompt" if self.panel.n_prompts == 1 else f"in all {self.panel.n_prompts} prompts"
            where = "at the last position" if self.panel.positions.kind == "last" else where
            return pinned_sources(self.panel.coders, hook, self.pins[hook], live, where=where)
        if hook.order[0] > self.panel.hooks[0].order[0] or self.settings.thin == 1.0:
            return live
        count = max(1, math.floor(self.settings.thin * len(live)))
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(self.seed))
        return [live[index] for index in sorted(order[:count].tolist())]

    def part(self, hook: HookPoint) -> NaivePart:
        """Ablate everything that one hook point names."""
        part = _Part(self, hook)
        sources = self.sources(hook)
        size = self._sources_at_once(part.measured)
        with task(f"ablate {hook}", total=len(sources), unit="ablations") as advance:
            for begin in range(0, len(sources), size):
                some = sources[begin : begin + size]
                part.add(some)
                advance(len(some))
        return part.finished()

    def rows_at_once(self, subject: Subject, hook: HookPoint, measured: Sequence[HookPoint]) -> int:
        """Ablations of what a hook point names in one pass."""
        coders = self.panel.coders
        widest = max((coders[other].d_sae for other in measured), default=0)
        read = sum(coders[other].d_in for other in measured) * subject.n_spliced
        return rows_at_once(
            subject,
            min(first_block(place) for place in (coders[hook].writes if hook in coders else (hook,))),
            backward=False,
            at_most=self.settings.batch_size,
            # Sums and marks of a board take three numbers a place.
            codes=3 * self.panel.positions.n_groups * widest + read,
        )

    def _sources_at_once(self, measured: Sequence[HookPoint]) -> int:
        """Of one prompt as many as are in one pass; of several as many as there is room for sums of all their edges."""
        if self.panel.n_prompts == 1:
            return self.settings.batch_size
        n_places = self.panel.positions.n_groups * sum(self.panel.coders[hook].d_sae for hook in measured)
        room = budget_of(self.panel.adapter) // (SeveralPrompts.PLACE_BYTES * max(1, n_places))
        return max(1, min(self.settings.batch_size, room))

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


class _Part:
    """What ablating the nodes of one hook point has shown so far."""

    def __init__(self, search: NaiveSearch, hook: HookPoint) -> None:
        self.search, self.panel, self.hook = search, search.panel, hook
        self.threshold, self.measured = search.threshold, search.measured(hook)
        self.unit = self.panel.subject(0)[0].metric.unit
        self.effects: dict[Target, Average] = {}
        self.edges: list[tuple[Target, HookPoint, Target, Average]] = []
        self.kept_total = self.dropped_total = 0.0
        self._moving: set[Target] = set()
        self._board = Board(self.panel.adapter.device)

    def add(self, sources: Sequence[Target]) -> None:
        """Ablate each of some nodes in every prompt in which it differs from its baseline."""
        panel = self.panel
        effects = wide(torch.zeros(panel.n_prompts, len(sources), device=panel.adapter.device))
        weights = {other: self._weights(other, len(sources)) for other in self.measured}
        for batch in panel.numbers:
            subject, _ = panel.subject(batch)
            rows, run = self._rows(batch, sources), partial(self._add_rows, batch, sources, effects, weights)
            for _ in in_batches(rows, run, size=self.search.rows_at_once(subject, self.hook, self.measured)):
                pass
        self._take(sources, effects, weights)

    def _weights(self, other: HookPoint, n_sources: int) -> OnePrompt | SeveralPrompts:
        panel = self.panel
        if panel.n_prompts == 1:
            return OnePrompt(self.threshold)
        shape = n_sources, panel.positions.n_groups, panel.coders[other].d_sae
        return SeveralPrompts(shape, n_prompts=panel.n_prompts, threshold=self.threshold, device=panel.adapter.device)

    def _add_rows(
        self,
        batch: int,
        sources: Sequence[Target],
        effects: Float[Tensor, "prompt source"],
        weights: Mapping[HookPoint, OnePrompt | SeveralPrompts],
        rows: Sequence[tuple[int, int]],
    ) -> None:
        """Ablate sources in one pass; rows: text and number of the source of each."""
        subject, baseline = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        ablated = ablate(
            subject,
            self.hook,
            [(text, sources[number]) for text, number in rows],
            baseline,
            measured=self.measured,
            masks=masks,
        )
        check_finite(ablated.effect.tolist(), f"the metric without a node of {self.hook}")
        texts, numbers = torch.tensor(rows, device=masks.device).unbind(dim=1)
        changes = [
            Comparison(self.panel, batch, other, self._board, masks).changes(x, texts, ablated.first)
            for other, x in ablated.read.items()
        ]
        # Nothing is taken in before all of it is there: a pass that does not fit the memory runs again.
        of_prompt = torch.tensor(self.panel.batches[batch], device=masks.device)[texts]
        effects[of_prompt, numbers] = ablated.effect.to(effects)
        moved = ablated.effect != 0
        for found in changes:
            moved[found.rows] = True
        self._moving.update(sources[number] for number in numbers[moved].tolist())
        for other, found in zip(ablated.read, changes, strict=True):
            weights[other].add(found, numbers)

    def _rows(self, batch: int, sources: Sequence[Target]) -> list[tuple[int, int]]:
        """Text and number of each source that differs from its baseline there."""
        subject, _ = self.panel.subject(batch)
        live = torch.ones(subject.n_texts, len(sources), dtype=torch.bool, device=self.panel.adapter.device)
        features = [number for number, source in enumerate(sources) if source.index is not None]
        if features:
            groups = [sources[number].group for number in features]
            indices = [sources[number].index for number in features]
            live[:, features] = differing(self.panel, batch, self.hook)[:, groups, indices]
        return [(text, number) for text, number in live.nonzero().tolist()]

    def _take(
        self,
        sources: Sequence[Target],
        effects: Float[Tensor, "prompt source"],
        weights: Mapping[HookPoint, OnePrompt | SeveralPrompts],
    ) -> None:
        """Keep effects, and the edges above the threshold."""
        for source, values in zip(sources, effects.unbind(dim=1), strict=True):
            self.effects[source] = average(values)
        for other, made in weights.items():
            found = made.weights()
            self.kept_total += found.kept
            self.dropped_total += found.dropped
            check_finite((self.kept_total, self.dropped_total), f"what {self.hook} changes at {other}")
            spreads = [()] * len(found.values) if found.spread is None else found.spread.tolist()
            for (number, group, index), value, more in zip(
                found.ends.tolist(), found.values.tolist(), spreads, strict=True
            ):
                self.edges.append((sources[number], other, Target(index, group), Average(value, *more)))

    def finished(self) -> NaivePart:
        """Nodes and edges by name. Raises InputError for a pin that changes nothing at all."""
        self._check_pins()
        ends: dict[HookPoint, list[Target]] = {}
        for _, other, target, _ in self.edges:
            ends.setdefault(other, []).append(target)
        nodes = self._nodes(self.hook, list(self.effects), self.effects)
        for other, targets in ends.items():
            nodes += self._nodes(other, list(dict.fromkeys(targets)), {})
        edges = [
            _edge(self._name(self.hook, source), self._name(other, target), weight, ACTIVATION)
            for source, other, target, weight in self.edges
        ]
        if not self.measured:
            edges += [
                _edge(self._name(self.hook, source), OUTPUT, effect, self.unit)
                for source, effect in self.effects.items()
                if abs(effect.value) > self.threshold
            ]
        return NaivePart(tuple(nodes), tuple(edges), self.kept_total, self.dropped_total)

    def _check_pins(self) -> None:
        for index in self.search.pins.get(self.hook, ()):
            if not any(source.index == index for source in self._moving):
                where = " ".join(str(other) for other in self.measured)
                raise InputError(
                    f"ablating {self.hook}/{index} changes nothing: its effect on the metric is exactly 0"
                    f"{f', and no feature of {where} changes' if where else ''}",
                    hint=f"pin other features than this one, or leave --pin out to ablate all of {self.hook}",
                )

    def _nodes(self, hook: HookPoint, targets: Sequence[Target], effects: Mapping[Target, Average]) -> list[Node]:
        nodes = []
        for target, active in zip(targets, activity(self.panel, hook, targets), strict=True):
            effect = effects.get(target)
            nodes.append(
                Node(
                    self._name(hook, target),
                    active.activation,
                    None if effect is None else effect.value,
                    None if effect is None else self.unit,
                    standard_error=None if effect is None else effect.standard_error,
                    active=active.active,
                )
            )
        return nodes

    def _name(self, hook: HookPoint, target: Target) -> str:
        return self.panel.node_id(hook, target.index, target.group)


def _edge(source: str, target: str, weight: Average, unit: str) -> Edge:
    return Edge(source, target, weight.value, unit, standard_error=weight.standard_error, active=weight.active)
