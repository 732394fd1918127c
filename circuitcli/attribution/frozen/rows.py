"""Edges into nodes of a frozen graph, target by target: sparse rows over all sources.

Edge s -> t is what s writes times the derivative of t's pre-activation (of a logit: of its value above the mean of the
vocabulary) by it: as both are linear, exactly what t changes by when s doubles and no other code moves. One backward
pass takes a batch of targets through the blocks before them, and is contracted with active features only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuitcli.attribution.frozen.linear import FrozenModel, divisor, reading
from circuitcli.attribution.frozen.nodes import Active, Nodes
from circuitcli.attribution.subject import Subject
from circuitcli.graphs.influence import Rows
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

# Of what features write, which is kept so that it need not be gathered for each batch.
KEPT_BYTES = 2**29


@dataclass(frozen=True)
class Chunk:
    """Rows of a batch of targets of one hook point; ``starts`` as in `Rows`."""

    targets: NDArray[np.int64]
    starts: NDArray[np.int64]
    sources: NDArray[np.int32]
    values: NDArray[np.floating]

    @classmethod
    def of(cls, targets: NDArray[np.int64], block: Float[Tensor, "target source"]) -> "Chunk":
        """What is not zero in a block."""
        values = block.cpu().numpy()
        there = values != 0
        starts = np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int64)
        return cls(targets, starts, np.nonzero(there)[1].astype(np.int32), values[there])


class Sources:
    """What each feature, error and token writes."""

    def __init__(self, model: FrozenModel, nodes: Nodes) -> None:
        self.model, self.nodes, self.subject = model, nodes, model.subject
        self._kept: dict[tuple[HookPoint, HookPoint], Tensor] = {}
        self._room = KEPT_BYTES

    def contracted(
        self, gradients: Mapping[HookPoint, Float[Tensor, "target spliced d_out"]], *, n_targets: int
    ) -> Float[Tensor, "target source"]:
        """Edges from all of them for derivatives by what is written."""
        like = next(iter(self.subject.coders.values())).W_enc
        block = like.new_zeros(n_targets, self.nodes.n_sources)
        coders = self.subject.coders
        for place, gradient in gradients.items():
            for active in self.nodes.active:
                if place in coders[active.hook].writes and len(active):
                    part = torch.einsum("tpd,pkd->tpk", gradient, self.written(active, coders[active.hook], place))
                    block[:, active.start : active.start + len(active)] += part[:, self.grid(active).there]
            if coders.writers(place):
                part = torch.einsum("tpd,pd->tp", gradient, self.subject.errors[place][0])
                start = self.nodes.errors_start(place)
            else:
                assert self.model.tokens is not None
                part = torch.einsum("tpd,pd->tp", gradient, self.model.tokens)
                start = self.nodes.tokens_start
            block[:, start : start + self.nodes.n_positions] = part
        return block

    def written(
        self, active: Active, coder: SparseCoder, place: HookPoint
    ) -> Float[Tensor, "position most_active d_out"]:
        """What the active features at each position write at a place, one after the other, then zeros."""
        key = (active.hook, place)
        if key not in self._kept:
            grid = self.grid(active)
            made = coder.decoder(place)[grid.indices] * grid.values[..., None]
            size = made.numel() * made.element_size()
            if size > self._room:
                return made
            self._room -= size
            self._kept[key] = made
        return self._kept[key]

    def bytes_to_keep(self) -> int:
        """How much of what features write is still to be gathered and kept."""
        whole = 0
        for active in self.nodes.active:
            coder = self.subject.coders[active.hook]
            whole += self.grid(active).there.numel() * coder.d_out * len(coder.writes) * coder.W_enc.element_size()
        return max(0, min(whole, KEPT_BYTES) - (KEPT_BYTES - self._room))

    def grid(self, active: Active) -> "Grid":
        """The active features of a coder by position."""
        return self._grids[active.hook]

    @cached_property
    def _grids(self) -> dict[HookPoint, "Grid"]:
        return {active.hook: self._grid(active) for active in self.nodes.active}

    def _grid(self, active: Active) -> "Grid":
        counts = torch.bincount(active.positions, minlength=self.nodes.n_positions)
        there = torch.arange(int(counts.max()) if len(counts) else 0, device=counts.device) < counts[:, None]
        scale = self.subject.scale(active.hook)
        codes = active.codes if scale is None else active.codes * scale[0, active.positions, 0]
        indices = active.indices.new_zeros(there.shape)
        values = codes.new_zeros(there.shape)
        indices[there], values[there] = active.indices, codes
        return Grid(there, indices, values)


@dataclass(frozen=True)
class Grid:
    """Active features in a row for each position; ``there`` says which places of the rows are taken."""

    there: Bool[Tensor, "position most_active"]
    indices: Int[Tensor, "position most_active"]
    values: Float[Tensor, "position most_active"]


class EdgeRows:
    """Edges into features and logits of a prompt."""

    def __init__(self, model: FrozenModel, nodes: Nodes) -> None:
        self.model, self.nodes, self.sources = model, nodes, Sources(model, nodes)

    def into_features(self, active: Active, places: Sequence[int]) -> Chunk:
        """Edges into some of a coder's active features, by their place among them."""
        chosen = np.asarray(places, dtype=np.int64)
        block = self.sources.contracted(
            self.model.gradients(self._read(active), self.seeds(active, chosen)), n_targets=len(chosen)
        )
        return Chunk.of(chosen + active.start, block)

    def into_logits(self) -> Chunk:
        """Edges into all logits."""
        targets = np.arange(self.nodes.n_sources, self.nodes.n)
        gradients = self.model.gradients(self.model.seen.normed[0], self.logit_directions)
        return Chunk.of(targets, self.sources.contracted(gradients, n_targets=len(targets)))

    def _read(self, active: Active) -> Float[Tensor, "1 spliced d_in"]:
        return self.model.seen.reads[active.hook]

    def seeds(self, active: Active, chosen: NDArray[np.int64]) -> Float[Tensor, "target 1 spliced d_in"]:
        """The derivative of each target's pre-activation by what its coder reads."""
        coder, x = self.model.subject.coders[active.hook], self._read(active)
        which = torch.from_numpy(chosen).to(x.device)
        positions = active.positions[which]
        rows = reading(coder, active.indices[which])
        divided = divisor(coder, x.detach())
        rows = rows if divided is None else rows / divided[0, positions]
        seeds = x.new_zeros(len(chosen), *x.shape)
        seeds[torch.arange(len(chosen), device=x.device), 0, positions] = rows
        return seeds

    @cached_property
    def logit_directions(self) -> Float[Tensor, "logit 1 position d_model"]:
        """The derivative of each logit above the mean of the vocabulary, without a soft cap, by the final norm's
        output."""
        return logit_directions(self.model.subject, self.model.seen.normed[0].detach(), self.nodes.logits)

    def metric_direction(self) -> Float[Tensor, "1 1 position d_model"]:
        """The derivative of the metric by the final norm's output."""
        subject = self.model.subject
        with torch.enable_grad():
            normed = self.model.seen.normed[0].detach().clone().requires_grad_()
            logits = subject.adapter.capped(subject.adapter.unembedded(normed[:, subject.metric.positions]))
            value = subject.metric.value(logits).sum()
            return torch.autograd.grad(value, normed)[0][None]


def logit_directions(
    subject: Subject, normed: Float[Tensor, "1 position d_model"], tokens: Sequence[int]
) -> Float[Tensor, "logit 1 position d_model"]:
    """The derivative of the logits of tokens above the mean of the vocabulary, without a soft cap, by the final norm's
    output."""
    with torch.enable_grad():
        last = normed[:, -1:].clone().requires_grad_()
        logits = subject.adapter.unembedded(last)[0, 0]
        logits = logits - logits.mean()
        rows = [torch.autograd.grad(logits[token], last, retain_graph=True)[0][0, 0] for token in tokens]
    directions = normed.new_zeros(len(rows), *normed.shape)
    directions[:, 0, -1] = torch.stack(rows)
    return directions


def effects(rows: EdgeRows) -> Float[Tensor, " source"]:
    """What each source contributes to the metric in the frozen model in which active features follow what they read.

    One backward pass from the metric, and one from all features of a coder together, the last coder first:
    ``effect(u) = edge(u -> metric) + sum over active d of dm/df_d edge(u -> d)``.
    """
    model, nodes = rows.model, rows.nodes
    total = dict(model.gradients(model.seen.normed[0], rows.metric_direction()))
    coders = model.subject.coders
    for active in reversed(nodes.active):
        coder, grid = coders[active.hook], rows.sources.grid(active)
        slopes = grid.values.new_zeros(grid.there.shape)
        for place in coder.writes:
            if place in total:
                # Of the code itself: what it writes for each unit.
                slopes += torch.einsum("pd,pkd->pk", total[place][0], coder.decoder(place)[grid.indices])
        scale = model.subject.scale(active.hook)
        slopes = slopes if scale is None else slopes * scale[0, :, :1]
        x = model.seen.reads[active.hook]
        seed = torch.einsum("pk,pkd->pd", slopes * grid.there, reading_grid(coder, grid))
        divided = divisor(coder, x.detach())
        seed = seed if divided is None else seed / divided[0]
        for place, gradient in model.gradients(x, seed[None, None]).items():
            total[place] = total[place] + gradient if place in total else gradient
    return rows.sources.contracted(total, n_targets=1)[0]


def reading_grid(coder: SparseCoder, grid: Grid) -> Float[Tensor, "position most_active d_in"]:
    """`reading` of the features of a grid."""
    return reading(coder, grid.indices.flatten()).unflatten(0, grid.indices.shape)


def assembled(nodes: Nodes, chunks: Iterable[Chunk]) -> Rows:
    """All rows, the last targets first."""
    ordered = sorted(chunks, key=lambda chunk: -int(nodes.orders[chunk.targets[0]]) if len(chunk.targets) else 0)
    counts = np.concatenate([np.diff(chunk.starts) for chunk in ordered])
    return Rows(
        kinds=nodes.kinds,
        orders=nodes.orders,
        weights=nodes.weights,
        targets=np.concatenate([chunk.targets for chunk in ordered]),
        starts=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        sources=np.concatenate([chunk.sources for chunk in ordered]),
        values=np.concatenate([chunk.values for chunk in ordered]),
    )


def batches(chosen: NDArray[np.int64], *, size: int) -> Iterator[NDArray[np.int64]]:
    """Some at a time."""
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]
