"""Exact edges by path patching: what edges promise, beside what taking them away one at a time changes.

Of edge u -> d: u goes to its baseline along the direct path to d alone, d takes the value that follows from it, and the
exact weight is ``m(clean) - m(this)``, all else running free (path patching, Goldowsky-Dill et al. 2023,
arXiv:2304.05969). Of u -> output the metric itself follows u along the direct path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.ablation import ablation_moves
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.correlation import correlation, rank_correlation
from circuitcli.attribution.direct import DirectRun, ends_of
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.panel import Panel, wide
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.attribution.targets import Target
from circuitcli.graphs import Edge
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback
from circuitcli.progress import task
from circuitcli.saes.splice import Encoded, error_of, shifted

End = tuple[HookPoint, Target]


@dataclass(frozen=True)
class Pair:
    """An edge by what its ends are; the output is None."""

    source: End
    target: End | None

    @property
    def hooks(self) -> tuple[HookPoint, HookPoint | None, bool]:
        """What edges can be run together by: where they begin and end, and whether that is an error."""
        if self.target is None:
            return self.source[0], None, False
        return self.source[0], self.target[0], self.target[1].index is None


def with_exact(panel: Panel, edges: Sequence[Edge], *, count: int, batch_size: int) -> tuple[Edge, ...]:
    """The edges, of which the ``count`` largest know their exact weight, a mean over prompts."""
    largest = sorted(edges, key=lambda edge: -abs(edge.weight))[:count]
    values = exact_weights(panel, [_pair(panel, edge) for edge in largest], batch_size=batch_size)
    check_finite(values.flatten().tolist(), "the metric without an edge")
    exact = dict(zip(((edge.source, edge.target) for edge in largest), values.mean(dim=0).tolist(), strict=True))
    return tuple(replace(edge, exact=exact.get((edge.source, edge.target))) for edge in edges)


def agreement(edges: Sequence[Edge]) -> dict[str, float]:
    """How far the weights of edges can be believed, where exact ones are known: their number, the correlations of both,
    and the share whose sign is the same."""
    known = [(edge.weight, edge.exact) for edge in edges if edge.exact is not None]
    weights, exact = (np.array(values, dtype=np.float64) for values in zip(*known, strict=True))
    found = {
        "exact_edges": float(len(known)),
        "correlation_exact": correlation(weights, exact),
        "rank_correlation_exact": rank_correlation(weights, exact),
        "sign_agreement_exact": float(np.mean(np.sign(weights) == np.sign(exact))),
    }
    return {name: value for name, value in found.items() if value is not None}


def exact_weights(panel: Panel, pairs: Sequence[Pair], *, batch_size: int) -> Float[Tensor, "prompt edge"]:
    """What each edge changes in each prompt."""
    values = wide(torch.zeros(panel.n_prompts, len(pairs), device=panel.adapter.device))
    alike: dict[tuple[HookPoint, HookPoint | None, bool], list[int]] = {}
    for number, pair in enumerate(pairs):
        alike.setdefault(pair.hooks, []).append(number)
    with task("exact edges", total=len(pairs) * len(panel.batches), unit="edges") as advance:
        for batch, numbers in enumerate(panel.batches):
            subject, baseline = panel.subject(batch)
            patcher = _Patcher(subject, baseline, panel.masks(subject), pairs)
            for some in alike.values():
                rows = [(text, edge) for edge in some for text in range(subject.n_texts)]
                size = rows_at_once(
                    subject,
                    first_block(pairs[some[0]].source[0]),
                    backward=False,
                    at_most=batch_size,
                    codes=subject.n_spliced * max(coder.d_sae for coder in subject.coders.values()),
                )
                found = torch.cat([*in_batches(rows, patcher.effects, size=size)])
                where = torch.tensor(rows, device=values.device)
                values[torch.tensor(numbers, device=values.device)[where[:, 0]], where[:, 1]] = found.to(values)
                advance(len(some))
    return values


def _pair(panel: Panel, edge: Edge) -> Pair:
    def end(name: str) -> End:
        node = NodeId.parse(name)
        return node.hook, Target(node.index, panel.positions.names.index(node.position))

    return Pair(end(edge.source), None if edge.target == OUTPUT else end(edge.target))


class _Moved(DirectRun):
    """Copies of the texts on the direct path, each with what its own source writes moved."""

    moves = True

    def __init__(self, subject: Subject, texts: Int[Tensor, " row"], by: Mapping[HookPoint, Tensor]) -> None:
        super().__init__(subject, texts, start=min(first_block(place) for place in by))
        self._by = by

    def value(self, hook: HookPoint) -> Float[Tensor, "row position d_model"]:
        """See `DirectRun`."""
        clean = super().value(hook)
        return clean if hook not in self._by else shifted(clean, self._by[hook], first=self.subject.first)


@dataclass(frozen=True)
class _Patcher:
    """Takes edges between the same hook points away, one in each row."""

    subject: Subject
    baseline: Baseline
    masks: Bool[Tensor, "text group spliced"]
    pairs: Sequence[Pair]

    @torch.no_grad()
    def effects(self, rows: Sequence[tuple[int, int]]) -> Float[Tensor, " row"]:
        """Of rows, each a text and the number of an edge: what the metric loses."""
        subject = self.subject
        texts = torch.tensor([text for text, _ in rows], device=subject.adapter.device)
        own = [self.pairs[number] for _, number in rows]
        hook = own[0].source[0]
        sources = [(text, pair.source[1]) for (text, _), pair in zip(rows, own, strict=True)]
        run = _Moved(subject, texts, ablation_moves(subject, hook, sources, self.baseline, masks=self.masks))
        clean = subject.metric_clean[texts]
        if own[0].target is None:
            return clean - run.metric()
        end, targets = own[0].target[0], [pair.target[1] for pair in own if pair.target is not None]
        run.until(ends_of(subject.coders, end, is_error=targets[0].index is None))
        moves = self._moves(run, end, targets)
        taps = {place: self._shift(move) for place, move in moves.items()}
        start = min(first_block(place) for place in moves)
        return clean - subject.metric_of(taps, texts=texts, start=start)

    def _shift(self, move: Tensor) -> Callback:
        return lambda x: shifted(x, move, first=self.subject.first)

    def _moves(self, run: DirectRun, end: HookPoint, targets: Sequence[Target]) -> dict[HookPoint, Tensor]:
        """What targets of one kind write otherwise in a run."""
        subject, texts = self.subject, run.texts
        where = self.masks[texts, [target.group for target in targets]]  # (row, spliced)
        if targets[0].index is None:
            writers = subject.coders.writers(end)
            encoded = {}
            for coder in writers:
                x = run.seen(coder.hook, going_on=coder.is_transcoder)
                codes, frame = coder.encode_framed(x)
                encoded[coder.hook] = Encoded(x, codes, frame, None)
            error = error_of(writers, end, run.seen(end), encoded)
            return {end: (error - subject.errors[end][texts]) * where[..., None]}
        coder, scale = subject.coders[end], subject.scale(end)
        indices = torch.tensor([target.index for target in targets], device=texts.device)
        codes = coder.encode_framed(run.seen(end, going_on=coder.is_transcoder))[0]
        each = torch.arange(len(targets), device=texts.device)
        moved = (codes[each, :, indices] - subject.codes[end][texts, :, indices]) * where
        moved = moved if scale is None else moved * scale[texts, :, 0]
        return {place: moved[..., None] * coder.decoder(place)[indices][:, None] for place in coder.writes}
