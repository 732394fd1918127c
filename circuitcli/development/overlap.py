"""How much the circuits of two checkpoints have in common, their features matched, and how much that is by chance.

Error terms are left out: those of one hook point have one name at all checkpoints and would count as shared. What is
not matched is shared with nothing.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint, NodeId

# Features of one checkpoint and the same features of another one, by hook point.
Pairs = Mapping[HookPoint, Mapping[int, int]]
SHUFFLES = 200


@dataclass(frozen=True)
class Overlap:
    """Shared over all that either has: ``jaccard`` counts nodes, ``weighted`` their shares of |effect|; and the mean of
    both where the same pairs are dealt out at random."""

    jaccard: float
    weighted: float
    shuffled: float
    shuffled_weighted: float


def features_of(graph: CircuitGraph) -> dict[NodeId, float]:
    """Effects of a circuit's features."""
    nodes = ((node.place, node.effect or 0.0) for node in graph.nodes)
    return {place: effect for place, effect in nodes if place is not None and place.index is not None}


def overlap(one: Mapping[NodeId, float], other: Mapping[NodeId, float], pairs: Pairs, *, seed: int) -> Overlap:
    """Of two circuits' features; pairs: features of ``one`` by those of ``other`` that are the same."""
    shared = _shared(one, renamed(other, pairs))
    generator = random.Random(seed)
    dealt = [_shared(one, renamed(other, shuffled(pairs, generator))) for _ in range(SHUFFLES)]
    return Overlap(*shared, fmean(value for value, _ in dealt), fmean(value for _, value in dealt))


def renamed(nodes: Mapping[NodeId, float], pairs: Pairs) -> dict[NodeId | str, float]:
    """The nodes by their names at the other checkpoint; those that are not matched by a name that no node has."""
    found: dict[NodeId | str, float] = {}
    for node, effect in nodes.items():
        assert node.index is not None
        own = pairs.get(node.hook, {}).get(node.index)
        found[f"unmatched {node}" if own is None else replace(node, index=own)] = effect
    return found


def shuffled(pairs: Pairs, generator: random.Random) -> dict[HookPoint, dict[int, int]]:
    """The same features on both sides, paired at random within each hook point."""
    dealt = {}
    for hook, own in pairs.items():
        values = list(own.values())
        generator.shuffle(values)
        dealt[hook] = dict(zip(own, values, strict=True))
    return dealt


def _shared(one: Mapping[NodeId, float], other: Mapping[NodeId | str, float]) -> tuple[float, float]:
    either = {*one, *other}
    if not either:
        return 1.0, 1.0
    a, b = _shares(one), _shares(other)
    least = sum(min(a.get(node, 0.0), b.get(node, 0.0)) for node in either)
    most = sum(max(a.get(node, 0.0), b.get(node, 0.0)) for node in either)
    return len(one.keys() & other.keys()) / len(either), least / most if most else 0.0


def _shares(nodes: Mapping) -> dict:
    total = sum(map(abs, nodes.values()))
    return {node: abs(effect) / total for node, effect in nodes.items()} if total else {}


@dataclass(frozen=True)
class Lifeline:
    """One feature through training: its index at each checkpoint from ``first`` on, by which it is matched with that at
    the next."""

    hook: HookPoint
    first: int
    indices: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last checkpoint at which it is found."""
        return self.first + len(self.indices) - 1

    def index_at(self, number: int) -> int | None:
        """Its index at a checkpoint; None where it is not found."""
        return self.indices[number - self.first] if self.first <= number <= self.last else None


def lifelines(wanted: Sequence[Mapping[NodeId, float]], steps: Sequence[Pairs]) -> list[Lifeline]:
    """Those of all features that some circuit has, in the order of hook points and first checkpoints.

    wanted: the circuits. steps: from each checkpoint to the next, features of the later by those of the earlier.
    """
    hooks = sorted({node.hook for one in wanted for node in one})
    found = []
    for hook in hooks:
        back = [{later: earlier for earlier, later in step.get(hook, {}).items()} for step in steps]
        seen: set[tuple[int, int]] = set()
        for number, circuit in enumerate(wanted):
            for index in sorted({node.index for node in circuit if node.hook == hook and node.index is not None}):
                if (number, index) not in seen:
                    line = _line(hook, number, index, steps, back)
                    seen |= {(line.first + place, each) for place, each in enumerate(line.indices)}
                    found.append(line)
    return found


def _line(
    hook: HookPoint, number: int, index: int, steps: Sequence[Pairs], back: Sequence[Mapping[int, int]]
) -> Lifeline:
    """The lifeline through this feature of a checkpoint."""
    before: list[int] = []
    current, place = index, number
    while place > 0 and current in back[place - 1]:
        place -= 1
        current = back[place][current]
        before.append(current)
    after = [index]
    for step in steps[number:]:
        following = step.get(hook, {}).get(after[-1])
        if following is None:
            break
        after.append(following)
    return Lifeline(hook, place, (*reversed(before), *after))
