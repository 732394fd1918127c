"""Running the model with only a circuit's edges: every node gets an input of its own, through its kept edges alone.

Hook point by hook point, in the order of the model, each kept node d is computed in a run of its own. There every node
u goes on with the value it has in the circuit if the edge u -> d is kept, else with its baseline; nodes outside the
circuit are at their baseline. d's value is the code, or the error, of what then arrives at its hook point. The output
is the metric of one more run, through the edges that lead there. Frames, skips and, where errors are all kept, errors
are those of the run at hand, as in a run with only a circuit's nodes (`circuits`).

So without any edge the metric is that of the empty circuit; with every edge from each kept node to all later ones all
runs are the same, and are the run with the circuit's nodes; with all nodes besides, the model's own. An edge with no
direct path does nothing, but for what frames and kept errors carry past a hook point that the whole stream goes
through. Nodes with the same sources share a run.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.memory import in_batches
from circuitcli.attribution.positions import where
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId, Position
from circuitcli.models.taps import Callback
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Edit, splice
from circuitcli.validation.circuits import check_node, rows_at_once

# From a node to a later one, or to the output (None).
Edge = tuple[NodeId, NodeId | None]
# Kept sources of a target, by their numbers among the nodes.
Sources = frozenset[int]
Turn = tuple[tuple[int, int], bool]


def every_edge(coders: Coders, nodes: Iterable[NodeId]) -> list[Edge]:
    """From each node to every one that is computed later, and to the output."""
    turns = [(_turn(coders, node), node) for node in nodes]
    pairs: list[Edge] = [(u, d) for source, u in turns for target, d in turns if source < target]
    return [*pairs, *((node, None) for _, node in turns)]


def edge_metric(
    subject: Subject,
    baseline: Baseline,
    nodes: Iterable[NodeId],
    edges: Iterable[Edge],
    *,
    policy: str,
    batch_size: int,
) -> Float[Tensor, " text"]:
    """The metric with only these edges between only these nodes, under an error policy.

    Raises InputError for a node that is not in this subject.
    """
    # Errors are nodes under one policy alone.
    kept = [node for node in dict.fromkeys(nodes) if policy == "nodes" or not node.is_error]
    for node in kept:
        check_node(subject, node)
    run = _EdgeRun(subject, baseline, kept, policy, batch_size)
    with torch.no_grad():
        return run.metric(_incoming(kept, edges))


def _incoming(kept: Sequence[NodeId], edges: Iterable[Edge]) -> list[set[int]]:
    """The kept sources of each kept node, and at the end those of the output."""
    numbers: dict[NodeId | None, int] = {node: number for number, node in enumerate(kept)}
    numbers[None] = len(kept)
    found: list[set[int]] = [set() for _ in numbers]
    for source, target in edges:
        if source in numbers and target in numbers:
            found[numbers[target]].add(numbers[source])
    return found


def _leading_on(incoming: Sequence[set[int]]) -> set[int]:
    """The nodes that the output comes from, by any number of edges; what the others are makes no difference."""
    found, waiting = set[int](), set(incoming[-1])
    while waiting:
        number = waiting.pop()
        found.add(number)
        waiting |= incoming[number] - found
    return found


def _turn(coders: Coders, node: NodeId) -> Turn:
    """When a node is computed: autoencoders read what arrives at a hook point, as errors do, others what goes on."""
    is_late = not node.is_error and node.hook in coders and coders[node.hook].is_transcoder
    return node.hook.order, is_late


class _Values:
    """What nodes are in the circuit, each at all of its places: (text, position) there, and a code or an error."""

    def __init__(self, subject: Subject, nodes: Sequence[NodeId]) -> None:
        self.subject, self.nodes = subject, nodes
        self._places: dict[Position, tuple[Tensor, Tensor]] = {}
        self._values: dict[int, Tensor] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._values

    def places(self, number: int) -> tuple[Tensor, Tensor]:
        """Text and position of each place of a node."""
        position = self.nodes[number].position
        if position not in self._places:
            texts, positions = where(self.subject.prompts, position, self.subject.adapter.device).nonzero().unbind(1)
            self._places[position] = texts, positions
        return self._places[position]

    def keep(self, number: int, seen: Tensor, *, first_row: int) -> None:
        """Keep a node's value of what was seen in the rows of all texts from one on."""
        node, (texts, positions) = self.nodes[number], self.places(number)
        values = seen[first_row + texts, positions]
        self._values[number] = values if node.index is None else values[:, node.index].clone()

    def put(self, into: Tensor, taken: Sequence[tuple[int, int]], own: Tensor) -> None:
        """Change ``into``, which is added to ``own``, so that nodes have their values in the rows of all texts from a
        row on; taken: this row, and the node."""
        if not taken:
            return
        places = [self.places(number) for _, number in taken]
        rows = torch.cat([row + texts for (row, _), (texts, _) in zip(taken, places, strict=True)])
        positions = torch.cat([positions for _, positions in places])
        values = torch.cat([self._values[number] for _, number in taken])
        index: tuple[Tensor, ...] = (rows, positions)
        if self.nodes[taken[0][1]].index is not None:
            lengths = torch.tensor([len(texts) for texts, _ in places], device=rows.device)
            features = torch.tensor([self.nodes[number].index for _, number in taken], device=rows.device)
            index = (*index, features.repeat_interleave(lengths))
        into[index] = values - own[index]


class _EdgeRun:
    """The values of the nodes, computed one hook point after the other."""

    def __init__(
        self, subject: Subject, baseline: Baseline, nodes: Sequence[NodeId], policy: str, batch_size: int
    ) -> None:
        self.subject, self.baseline, self.nodes, self.policy = subject, baseline, nodes, policy
        self.values = _Values(subject, nodes)
        self._sets_at_once = max(1, rows_at_once(subject, batch_size=batch_size) // subject.n_texts)

    def metric(self, incoming: Sequence[set[int]]) -> Float[Tensor, " text"]:
        """The metric with these sources of each node, and of the output."""
        turns: dict[Turn, list[int]] = {}
        for number in sorted(_leading_on(incoming)):
            turns.setdefault(_turn(self.subject.coders, self.nodes[number]), []).append(number)
        for _, numbers in sorted(turns.items()):
            self._compute(numbers, incoming)
        last = _Pass(self, [frozenset(incoming[-1])])
        return self.subject.metric_of(last.taps(None), texts=last.texts)

    def _compute(self, numbers: Sequence[int], incoming: Sequence[set[int]]) -> None:
        """The values of nodes of one hook point that are computed at once, those of the same sources in one run."""
        sharing: dict[Sources, list[int]] = {}
        for number in numbers:
            # Only what was computed before can lead to it.
            before = frozenset(source for source in incoming[number] if source in self.values)
            sharing.setdefault(before, []).append(number)
        every, hook = list(sharing), self.nodes[numbers[0]].hook

        def compute(sets: Sequence[Sources]) -> None:
            run = _Pass(self, sets)
            run.until(hook)
            run.keep((row, number) for row, sources in enumerate(sets) for number in sharing[sources])

        for _ in in_batches(every, compute, size=self._sets_at_once):
            pass


class _Pass:
    """One pass with a row for each set of sources and text, one set after the other."""

    def __init__(self, run: _EdgeRun, sets: Sequence[Sources]) -> None:
        self.run, self.subject, self.sets = run, run.subject, sets
        self.texts = torch.arange(self.subject.n_texts, device=self.subject.adapter.device).repeat(len(sets))
        self._seen: dict[bool, Tensor] = {}

    def taps(self, until: HookPoint | None) -> dict[HookPoint, Callback]:
        """Taps up to a hook point (None: all); codes and errors there are kept."""

        def change(hook: HookPoint, own: Tensor, *, is_error: bool) -> Tensor | None:
            if hook == until:
                self._seen[is_error] = own
            return self._change(hook, own, is_error=is_error)

        edit = Edit(partial(change, is_error=False), partial(change, is_error=True))
        found = splice(self.subject.coders, edit, first=self.subject.first)
        return {hook: tap for hook, tap in found.items() if until is None or hook <= until}

    def until(self, hook: HookPoint) -> None:
        """Run until codes and error of a hook point are there."""
        taps = self.taps(hook)
        stop = None if any(place.site == "embed" for place in taps) else hook.layer + 1
        self.subject.run(taps, texts=self.texts, stop=stop)

    def keep(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Keep the values of nodes, each of the set of sources with a number."""
        for row, number in pairs:
            seen = self._seen[self.run.nodes[number].is_error]
            self.run.values.keep(number, seen, first_row=row * self.subject.n_texts)

    def _change(self, hook: HookPoint, own: Tensor, *, is_error: bool) -> Tensor | None:
        """What takes a run's own codes or errors to their baseline, and those of kept sources to their values."""
        if is_error and self.run.policy == "kept":
            return None
        absent = (self.run.baseline.errors if is_error else self.run.baseline.codes)[hook]
        changed = (absent if len(absent) == 1 else absent[self.texts]) - own
        self.run.values.put(changed, self._sources.get((hook, is_error), ()), own)
        return changed

    @cached_property
    def _sources(self) -> Mapping[tuple[HookPoint, bool], Sequence[tuple[int, int]]]:
        """By where they write, each kept source of a set with the first row of the set."""
        found: dict[tuple[HookPoint, bool], list[tuple[int, int]]] = {}
        for row, sources in enumerate(self.sets):
            for number in sorted(sources):
                node = self.run.nodes[number]
                found.setdefault((node.hook, node.is_error), []).append((row * self.subject.n_texts, number))
        return found
