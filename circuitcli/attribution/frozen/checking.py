"""How far the edges of a frozen graph can be believed: interventions on their sources, drawn at random.

In the frozen model the source of an edge is doubled and the target read: it has changed by the weight, but for
rounding. In the model as it is the source is doubled, and set to zero, and all else follows: how edges rank what then
happens to their targets says how much of that the frozen model sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuitcli.attribution.correlation import rank_correlation
from circuitcli.attribution.frozen.linear import EMBED, Seen, divisor, reading
from circuitcli.attribution.frozen.nodes import Active
from circuitcli.attribution.frozen.rows import EdgeRows, batches
from circuitcli.graphs.influence import Rows
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.taps import Callback
from circuitcli.progress import task
from circuitcli.saes.splice import shifted


@dataclass(frozen=True)
class EdgeCheck:
    """One edge: what it says, what doubling its source does to its target in the frozen model, what doubling it and
    zeroing it do in the model as it is."""

    source: str
    target: str
    weight: float
    frozen: float
    doubled: float
    zeroed: float

    @property
    def relative_error(self) -> float:
        """By how much of the edge the frozen model differs from it."""
        return abs(self.frozen - self.weight) / abs(self.weight)


@dataclass(frozen=True)
class EdgeChecks:
    """Those of all edges that were drawn."""

    checks: tuple[EdgeCheck, ...]

    def facts(self) -> dict[str, float | None]:
        """The numbers that sum them up; correlations are None of fewer than three edges.

        Those of ``coded`` sources leave token embeddings out: norms take most of what doubling them does away, and what
        MLPs in front of the first coder make of them is constant in the frozen model.
        """
        weights, frozen = self._numbers("weight"), self._numbers("frozen")
        errors = np.array([check.relative_error for check in self.checks])
        coded = EdgeChecks(tuple(check for check in self.checks if not NodeId.parse(check.source).is_token))
        return {
            "edges": float(len(self.checks)),
            "relative_error": float(np.linalg.norm(frozen - weights) / np.linalg.norm(weights)),
            "median_relative_error": float(np.median(errors)),
            "largest_relative_error": float(errors.max()),
            **self._correlations(""),
            **coded._correlations("_coded"),
        }

    def _correlations(self, ending: str) -> dict[str, float | None]:
        weights, doubled, zeroed = (self._numbers(name) for name in ("weight", "doubled", "zeroed"))
        agrees = np.sign(weights) == np.sign(doubled)
        return {
            f"rank_correlation_doubled{ending}": rank_correlation(weights, doubled),
            f"rank_correlation_zeroed{ending}": rank_correlation(-weights, zeroed),
            f"sign_agreement_doubled{ending}": float(agrees.mean()) if len(agrees) else None,
        }

    def _numbers(self, name: str) -> NDArray[np.float64]:
        return np.array([getattr(check, name) for check in self.checks])


def check_edges(edges: EdgeRows, rows: Rows, n: int, *, seed: int, batch_size: int) -> EdgeChecks:
    """Intervene for ``n`` edges, drawn with the seed; for all if there are no more."""
    drawn = np.sort(np.random.default_rng(seed).choice(rows.n_edges, size=min(n, rows.n_edges), replace=False))
    sources, targets, weights = rows.sources[drawn], rows.edge_targets[drawn], rows.values[drawn]
    bench, found = _Bench(edges), []
    with task("edges checked", total=len(drawn), unit="edges") as advance:
        for some in batches(np.arange(len(drawn)), size=batch_size):
            moves = bench.moves(sources[some])
            back = {place: -move for place, move in moves.items()}
            changes = [
                bench.frozen(moves, targets[some]),
                bench.real(moves, targets[some]),
                bench.real(back, targets[some]),
            ]
            found += [
                EdgeCheck(edges.nodes.name(int(source)), edges.nodes.name(int(target)), float(weight), *numbers)
                for source, target, weight, *numbers in zip(
                    sources[some], targets[some], weights[some], *changes, strict=True
                )
            ]
            advance(len(some))
    return EdgeChecks(tuple(found))


class _Bench:
    """Interventions on sources, and what targets are then."""

    def __init__(self, edges: EdgeRows) -> None:
        self.edges, self.model, self.nodes = edges, edges.model, edges.nodes
        self.subject = edges.model.subject

    def moves(self, sources: NDArray[np.integer]) -> dict[HookPoint, Float[Tensor, "row spliced d_out"]]:
        """What doubling a source, in a row for each, adds to what is written."""
        moves: dict[HookPoint, Tensor] = {}
        for row, number in enumerate(sources.tolist()):
            for place, position, vector in self._written(number):
                if place not in moves:
                    moves[place] = vector.new_zeros(len(sources), self.nodes.n_positions, len(vector))
                moves[place][row, position] += vector
        return moves

    def _written(self, number: int) -> list[tuple[HookPoint, int, Float[Tensor, " d_out"]]]:
        nodes, subject = self.nodes, self.subject
        for active in nodes.active:
            if number in active.numbers:
                one = number - active.start
                position, coder = int(active.positions[one]), subject.coders[active.hook]
                scale = subject.scale(active.hook)
                code = active.codes[one] if scale is None else active.codes[one] * scale[0, position, 0]
                return [(place, position, coder.decoder(place)[active.indices[one]] * code) for place in coder.writes]
        place, position = divmod(number - nodes.n_features, nodes.n_positions)
        if place == len(nodes.errors):
            assert self.model.tokens is not None
            return [(EMBED, position, self.model.tokens[position])]
        hook = nodes.errors[place]
        return [(hook, position, subject.errors[hook][0, position])]

    def frozen(self, moves: Mapping[HookPoint, Tensor], targets: NDArray[np.integer]) -> list[float]:
        """How each row's target changes in the frozen model."""
        seen, clean = self.model.moved(moves), self.model.seen
        return [self._frozen_change(seen, clean, row, number) for row, number in enumerate(targets.tolist())]

    def _frozen_change(self, seen: Seen, clean: Seen, row: int, number: int) -> float:
        active = self._active(number)
        if active is None:
            return self._logit_change(seen.normed[0][row, -1], clean.normed[0][0, -1], number)
        one, coder = number - active.start, self.subject.coders[active.hook]
        position, before = int(active.positions[one]), clean.reads[active.hook][0].detach()
        change = seen.reads[active.hook][row, position] - before[position]
        divided = divisor(coder, before)
        change = change if divided is None else change / divided[position]
        return float(change @ reading(coder, active.indices[one : one + 1])[0])

    def real(self, moves: Mapping[HookPoint, Tensor], targets: NDArray[np.integer]) -> list[float]:
        """How each row's target changes in the model as it is."""
        seen, adapter = self._real_run(moves, len(targets)), self.subject.adapter
        changes = []
        for row, number in enumerate(targets.tolist()):
            active = self._active(number)
            if active is None:
                last = adapter.final_norm(seen.normed[0][row : row + 1, -1:])[0, 0]
                changes.append(self._logit_change(last, self.model.seen.normed[0][0, -1], number))
                continue
            one, coder = number - active.start, self.subject.coders[active.hook]
            position, row_of = int(active.positions[one]), reading(coder, active.indices[one : one + 1])[0]
            after = coder.centred(seen.reads[active.hook][row : row + 1])[0, position]
            before = coder.centred(self.model.seen.reads[active.hook].detach())[0, position]
            changes.append(float((after - before) @ row_of))
        return changes

    @torch.no_grad()
    def _real_run(self, moves: Mapping[HookPoint, Tensor], rows: int) -> Seen:
        seen, subject = Seen(), self.subject

        def tap(hook: HookPoint) -> Callback:
            def callback(x: Tensor) -> Tensor | None:
                going_on = shifted(x, moves[hook], first=subject.first) if hook in moves else x
                if hook in subject.coders:
                    read = going_on if subject.coders[hook].is_transcoder else x
                    seen.reads[hook] = read[:, subject.first :].to(subject.coders[hook].W_enc)
                return going_on

            return callback

        texts = torch.zeros(rows, dtype=torch.int64, device=self.model.device)
        hooks = {EMBED, *subject.coders.hooks}
        seen.normed.append(subject.run({hook: tap(hook) for hook in sorted(hooks)}, texts=texts, start=-1))
        return seen

    @torch.no_grad()
    def _logit_change(self, after: Tensor, before: Tensor, number: int) -> float:
        logits = self.subject.adapter.unembedded(torch.stack([after, before.detach()])[:, None])[:, 0]
        change = (logits[0] - logits[1]).cpu().double()
        return float(change[self.nodes.logits[number - self.nodes.n_sources]] - change.mean())

    def _active(self, number: int) -> Active | None:
        return next((active for active in self.nodes.active if number in active.numbers), None)
