"""What the circuit is by its definition: slow, and by no derivative.

An edge is there if moving its source alone, along the direct path, moves its target; either in the clean run or in the
run at the baseline, with all else held as it is there. A node is there if a path of such edges leads to the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.taps import tapped

from .planted import Planted

# Of a target's own difference between the two runs; what norms carry is a thousand times less.
SHARE = 0.05


@dataclass(frozen=True)
class Source:
    """A feature at a position, by how much it differs between the two runs."""

    hook: HookPoint
    index: int
    position: int


class Held:
    """Runs in which every spliced hook point goes on with what it has at one end, plus what a source adds there."""

    def __init__(self, planted: Planted, codes: Mapping[HookPoint, Tensor], errors: Mapping[HookPoint, Tensor]) -> None:
        self.planted, self.coders, self.first = planted, planted.coders, planted.prompt.first
        self.going_on = {
            place: errors[place]
            + sum(coder.decode(codes[coder.hook], hook=place) for coder in planted.coders.writers(place))
            for place in planted.coders.written
        }

    def run(self, moves: Mapping[HookPoint, Tensor], *, rows: int) -> tuple[dict[HookPoint, Tensor], Tensor]:
        """Codes of what arrives at each coder, and the metric, of rows with their own moves."""
        subject, seen = self.planted.subject, {}

        def tap(hook: HookPoint):
            def callback(x: Tensor) -> Tensor:
                coder, new = self.coders.get(hook), x.clone()
                if coder is not None and not coder.is_transcoder:
                    seen[hook] = coder.encode(x[:, self.first :])
                if hook in self.going_on:
                    new[:, self.first :] = self.going_on[hook] + moves[hook]
                if coder is not None and coder.is_transcoder:
                    seen[hook] = coder.encode(new[:, self.first :])
                return new

            return callback

        ids = subject.clean.input_ids.expand(rows, -1)
        with torch.no_grad(), tapped(subject.adapter, {hook: tap(hook) for hook in self.coders.hooks}):
            logits = subject.adapter.logits(ids)
        return seen, subject.metric.value(logits[:, -1:])


def live(planted: Planted, baseline: Baseline, *, least: float = 1e-3) -> list[Source]:
    """Features that differ between the two runs by more than what norms make of them."""
    found = []
    for hook, codes in planted.subject.codes.items():
        differs = (codes - baseline.codes[hook]).abs()[0] > least
        found += [Source(hook, index, position) for position, index in differs.nonzero().tolist()]
    return found


def direct_edges(planted: Planted, baseline: Baseline) -> set[tuple[str, str]]:
    """All pairs of live nodes, and of live nodes and the output, between which there is an edge."""
    codes, errors = planted.subject.codes, planted.subject.errors
    absent = {hook: value.expand_as(codes[hook]) for hook, value in baseline.codes.items()}
    missing = {place: value.expand_as(errors[place]) for place, value in baseline.errors.items()}
    differences = {hook: absent[hook] - codes[hook] for hook in codes}
    sources = live(planted, baseline)
    reached, found = behaviour(planted, absent, missing), set()
    for sign, held in ((1.0, Held(planted, codes, errors)), (-1.0, Held(planted, absent, missing))):
        # The last row is moved by nothing.
        seen, metric = held.run(_moves(planted, sources, differences, sign), rows=len(sources) + 1)
        for row, source in enumerate(sources):
            for target in (one for one in sources if one.hook > source.hook):
                place = (target.position, target.index)
                moves = float((seen[target.hook][row] - seen[target.hook][-1])[place])
                if abs(moves) > SHARE * abs(float(differences[target.hook][0][place])):
                    found.add((named(planted, source), named(planted, target)))
            if abs(float(metric[row] - metric[-1])) > SHARE * reached:
                found.add((named(planted, source), OUTPUT))
    return found


def behaviour(planted: Planted, codes: Mapping[HookPoint, Tensor], errors: Mapping[HookPoint, Tensor]) -> float:
    """How far the metric is from that of the run at the baseline."""
    nothing = dict.fromkeys(planted.coders.written, torch.zeros(()))
    _, metric = Held(planted, codes, errors).run(nothing, rows=1)
    return abs(float(planted.subject.metric_clean - metric))


def _moves(
    planted: Planted, sources: Sequence[Source], differences: Mapping[HookPoint, Tensor], sign: float
) -> dict[HookPoint, Tensor]:
    """What each source adds where it writes, a row each and one more."""
    shape = (len(sources) + 1, planted.prompt.n_spliced, planted.adapter.d_model)
    moves = {place: torch.zeros(shape, dtype=torch.float64) for place in planted.coders.written}
    for row, source in enumerate(sources):
        amount = sign * differences[source.hook][0, source.position, source.index]
        coder = planted.coders[source.hook]
        for place in coder.writes:
            moves[place][row, source.position] = amount * coder.decoder(place)[source.index]
    return moves


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
