"""What the circuit is by its definition: slow, and by no derivative.

An edge is there if moving its source alone, along the direct path, moves its target; either in the clean run or in the
run at the baseline, with all else held as it is there. A node is there if a path of such edges leads to the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.taps import tapped

from .planted import Planted

# Of a target's own difference between the two runs; what norms carry is a thousand times less.
SHARE = 0.2


@dataclass(frozen=True)
class Source:
    """A feature at a position, by how much it differs between the two runs."""

    hook: HookPoint
    index: int
    position: int


class Held:
    """A run in which every spliced hook point goes on with what it has at one end, plus what one source adds there."""

    def __init__(self, planted: Planted, codes: Mapping[HookPoint, Tensor], errors: Mapping[HookPoint, Tensor]) -> None:
        self.planted, self.arrived = planted, {}
        coders, self.first = planted.coders, planted.prompt.first
        self.going_on = {
            place: errors[place] + sum(coder.decode(codes[coder.hook], hook=place) for coder in coders.writers(place))
            for place in coders.written
        }

    def run(self, move: Mapping[HookPoint, Tensor]) -> tuple[dict[HookPoint, Tensor], float]:
        """Codes of what arrives at each coder, and the metric."""
        subject, seen = self.planted.subject, {}

        def tap(hook: HookPoint):
            def callback(x: Tensor) -> Tensor:
                coder, new = self.planted.coders.get(hook), x.clone()
                if coder is not None and not coder.is_transcoder:
                    seen[hook] = coder.encode(x[:, self.first :])
                if hook in self.going_on:
                    new[:, self.first :] = self.going_on[hook] + move.get(hook, 0.0)
                if coder is not None and coder.is_transcoder:
                    seen[hook] = coder.encode(new[:, self.first :])
                return new

            return callback

        with torch.no_grad(), tapped(subject.adapter, {hook: tap(hook) for hook in self.planted.coders.hooks}):
            logits = subject.adapter.logits(subject.clean.input_ids)
        return seen, float(subject.metric.value(logits[:, -1:]))


def live(planted: Planted, baseline: Baseline, *, least: float = 1e-3) -> list[Source]:
    """Features that differ between the two runs by more than what norms make of them."""
    found = []
    for hook, codes in planted.subject.codes.items():
        differs = (codes - baseline.codes[hook]).abs()[0] > least
        found += [Source(hook, index, position) for position, index in differs.nonzero().tolist()]
    return found


def direct_edges(planted: Planted, baseline: Baseline) -> set[tuple[str, str]]:
    """All pairs of live nodes, and of live nodes and the output, between which there is an edge."""
    codes, errors, coders = planted.subject.codes, planted.subject.errors, planted.coders
    absent = {hook: value.expand_as(codes[hook]) for hook, value in baseline.codes.items()}
    ends = (
        (1.0, Held(planted, codes, errors)),
        (
            -1.0,
            Held(planted, absent, {place: value.expand_as(errors[place]) for place, value in baseline.errors.items()}),
        ),
    )
    sources = live(planted, baseline)
    rests = [held.run({}) for _, held in ends]
    reached = rests[0][1] - rests[1][1]
    found = set()
    for source in sources:
        for (sign, held), (rest, metric) in zip(ends, rests, strict=True):
            difference = (absent[source.hook] - codes[source.hook])[0, source.position, source.index] * sign
            move = {}
            for place in coders[source.hook].writes:
                move[place] = torch.zeros_like(errors[place])
                move[place][0, source.position] = difference * coders[source.hook].decoder(place)[source.index]
            seen, moved = held.run(move)
            for target in sources:
                own = abs(float((codes[target.hook] - absent[target.hook])[0, target.position, target.index]))
                here = (0, target.position, target.index)
                if (
                    target.hook > source.hook
                    and abs(float(seen[target.hook][here] - rest[target.hook][here])) > SHARE * own
                ):
                    found.add((named(planted, source), named(planted, target)))
            if abs(moved - metric) > SHARE * abs(reached):
                found.add((named(planted, source), OUTPUT))
    return found


def named(planted: Planted, source: Source) -> str:
    """The node as graphs write it."""
    return str(NodeId(source.hook, source.index, source.position + planted.prompt.first))


def behind(edges: set[tuple[str, str]], end: str = OUTPUT) -> tuple[set[str], set[tuple[str, str]]]:
    """The nodes from which a path leads to the end, and the edges of all such paths."""
    reached, waiting = {end}, [end]
    while waiting:
        target = waiting.pop()
        for source, reads in edges:
            if reads == target and source not in reached:
                reached.add(source)
                waiting.append(source)
    return reached - {OUTPUT}, {edge for edge in edges if edge[1] in reached}
