"""The gradient graph: which nodes and edges are kept.

From the hook points with a direct path to the output, the ``down`` most positive and most negative nodes by effect;
then, hook point by hook point upwards, the sources of the ``up`` most positive and most negative edges into each kept
node, cut to ``down`` of each sign and hook point by node effect. Nodes without a path to the output are dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.edges import Incoming, Target, incoming, needs_one_position, to_output
from circuitcli.attribution.gradients import Effects, node_effects
from circuitcli.attribution.subject import Subject
from circuitcli.graphs import CircuitGraph, Edge, Node, connected_to_output, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.saes.base import CODES_AT_ONCE, strongest
from circuitcli.settings.graph import GraphSettings

Key = tuple[HookPoint, Target]
P = TypeVar("P")


@dataclass(frozen=True)
class _Piece:
    """Some features of a hook point from ``start`` on, or its error (None)."""

    hook: HookPoint
    start: int | None
    width: int


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
            found.candidates[hook] = set(self._strongest(hook, effects[hook]))
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
        batches = incoming(self.subject, hook, live, effects, self.baseline, batch_size=self._rows(hook, live))
        for targets, sources in batches:
            strongest = [Strongest[_Piece](self.settings.up) for _ in targets]
            for source, edges in sources.items():
                self._offer(strongest, source, edges)
            for target, best in zip(targets, strongest, strict=True):
                for piece, index, weight in best.found():
                    end = self._target(piece, index)
                    found.candidates.setdefault(piece.hook, set()).add(end)
                    found.edges.append(((piece.hook, end), (hook, target), weight))

    def _rows(self, hook: HookPoint, targets: Sequence[Target]) -> int:
        """Targets in one backward pass, so that their codes stay under an eighth of a gigabyte."""
        sae = self.subject.saes[hook]
        n_coded = 1 if needs_one_position(sae, targets) else self.subject.prompt.n_spliced
        return max(1, min(self.settings.batch_size, CODES_AT_ONCE // (n_coded * sae.d_sae)))

    def _is_live(self, hook: HookPoint, target: Target) -> bool:
        """Whether a node can have incoming edges: the error, or a feature that is active in the clean run."""
        if target.index is None:
            return True
        codes = self.subject.coded[hook].codes[0, :, target.index]
        return bool((codes if target.position is None else codes[target.position]).any())

    def _offer(self, strongest: Sequence["Strongest[_Piece]"], hook: HookPoint, values: Effects | Incoming) -> None:
        """Show all nodes of a hook point: effects, or the edges into each of several targets."""
        for features, part in values.parts.pieces():
            piece = _Piece(hook, features.start, features.stop - features.start)
            for best, row in zip(strongest, part.reshape(len(strongest), *part.shape[-2:]), strict=True):
                best.add(piece, self._flat(row))
        error = _Piece(hook, None, 1)
        for best, row in zip(strongest, values.error.reshape(len(strongest), -1), strict=True):
            best.add(error, self._flat(row[:, None]))

    def _flat(self, values: Float[Tensor, "position nodes"]) -> Float[Tensor, " nodes_at_positions"]:
        """Values of some nodes of a hook point, for each position that has nodes of its own."""
        if self.positions == "sum":
            return values.sum(dim=0)
        return (values[-1:] if self.positions == "last" else values).flatten()

    def _target(self, piece: "_Piece", flat: int) -> Target:
        """The node at an index of a piece's flattened values."""
        row, column = divmod(flat, piece.width)
        position = None if self.positions == "sum" else row
        if self.positions == "last":
            position = self.subject.prompt.n_spliced - 1
        return Target(None if piece.start is None else piece.start + column, position)

    def _strongest(self, hook: HookPoint, effects: Effects) -> list[Target]:
        best = Strongest[_Piece](self.settings.down)
        self._offer([best], hook, effects)
        return [self._target(piece, index) for piece, index, _ in best.found()]

    def _cut(self, candidates: Iterable[Target], effects: Effects) -> list[Target]:
        valued = [(value_of(effects, target), target) for target in candidates]
        valued.sort(key=lambda pair: (-abs(pair[0]), _rank(pair[1])))
        positive = [target for value, target in valued if value > 0][: self.settings.down]
        negative = [target for value, target in valued if value < 0][: self.settings.down]
        return positive + negative

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
                weight = value_of(output[hook], target)
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
        return Node(self.node_id(hook, target), activation, value_of(effects, target), unit)


def value_of(effects: Effects, target: Target) -> float:
    """The effect of one node, summed over positions if the node is."""
    values = effects.error if target.index is None else effects.parts.at(target.index)
    return float(values.sum() if target.position is None else values[target.position])


def _rank(target: Target) -> tuple[int, int]:
    return (-1 if target.position is None else target.position, 2**62 if target.index is None else target.index)


class Strongest(Generic[P]):
    """The ``count`` largest positive and the ``count`` most negative values of all that were added, in pieces."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[bool, list[tuple[P, int, float]]] = {True: [], False: []}

    def add(self, piece: P, values: Float[Tensor, " n"]) -> None:
        """Take in the values of a piece; of equals those that came first stay."""
        both = [(piece, index, value) for index, value in extremes(values, self._count)]
        for sign, found in self._found.items():
            found += [entry for entry in both if (entry[2] > 0) == sign]
            found.sort(key=lambda entry: -abs(entry[2]))
            del found[self._count :]

    def found(self) -> list[tuple[P, int, float]]:
        """Piece, index in it and value: the positive ones, then the negative ones, strongest first."""
        return [*self._found[True], *self._found[False]]


def extremes(values: Float[Tensor, " n"], count: int) -> Sequence[tuple[int, float]]:
    """Index and value of the ``count`` largest positive and the ``count`` most negative values, strongest first."""
    found: list[tuple[int, float]] = []
    size = min(count, values.numel())
    for sign in (1.0, -1.0):
        top = (values * sign).topk(size)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found += [(index, sign * value) for index, value in pairs if value > 0]
    return found
