"""Edges split by the head that first reads the source.

A path from a source to a target goes along the stream until a head reads from it, moves that to other positions, and
then on to the target in any way, also through later attention. Each path thus belongs to one head, the first that it
passes, or, if it passes none, to the stream: together these parts are the edge. Where patterns follow the text (graphs
that are not frozen) a head has two parts: by what it moves, and by where it looks.

One backward pass from a batch of targets gives their derivatives by what attention adds in each block, all later paths
included. What a source writes is carried forward along the stream alone, position by position, to what attention reads
in each block: as the derivative of a derivative, for a batch of sources at once. Both meet in the weights of the heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.attention.jacobian import HeadJacobian, Reading
from circuitcli.attribution.attention.parts import Parts
from circuitcli.attribution.attention.passes import FROZEN, Backward, DirectPass, direct_pass
from circuitcli.attribution.direct import products
from circuitcli.attribution.memory import budget_of, in_batches
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.attention import attention_of, check_heads

T = TypeVar("T")
# What a source writes, by hook point: (spliced, d_out).
Write = Mapping[HookPoint, Float[Tensor, "spliced d_out"]]
# Numbers of edges, heads and their width that are in memory at once.
_AT_ONCE = 2**23
# Of a row of a batched pass: activations that it leaves in each block, and that a block makes meanwhile.
_KEPT, _MADE = 2, 16


@dataclass(frozen=True)
class Carried:
    """What sources bring to what attention reads: an entry for each source and position where it writes.

    source: its number, which lies on the processor. readings: by block, what heads then read.
    """

    source: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    readings: Mapping[int, Reading]


class HeadSplit:
    """Splits edges on one prompt of a subject."""

    def __init__(
        self,
        subject: Subject,
        *,
        text: int = 0,
        backward: Backward = FROZEN,
        values: Mapping[HookPoint, Float[Tensor, "text position d_model"]] | None = None,
    ) -> None:
        """values: as in `direct_pass`. Raises InputError if the heads of the model are not known."""
        check_heads(subject.adapter)
        self.subject, self.backward, self._values = subject, backward, values
        self.texts = torch.tensor([text], device=subject.adapter.device)
        with direct_pass(subject, self.texts, backward=backward, values=values) as run:
            assert run.residual is not None
            self.run, self.normed = run, subject.adapter.final_norm(run.residual)
        every = range(subject.adapter.n_layers)
        self.layers = tuple(layer for layer in every if self.run.arriving[HookPoint(layer, "attn")].requires_grad)

    def towards(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor]
    ) -> dict[int, Float[Tensor, "target position d_model"]]:
        """Derivatives of targets, each the sum of outputs of the run times its seeds, by what attention adds in each
        block; all paths behind it included."""
        places = [self.run.arriving[HookPoint(layer, "attn")] for layer in self.layers]
        found = products(tuple(outputs), tuple(places), tuple(seeds))
        return {
            layer: gradient[:, 0].to(self._like)
            for layer, gradient in zip(self.layers, found, strict=True)
            if gradient is not None
        }

    def pieces(
        self,
        into: Mapping[T, Sequence[int]],
        sources: Sequence[int],
        gradients: Callable[[Sequence[T]], Mapping[int, Tensor]],
        carried: Carried,
        *,
        batch_size: int,
    ) -> Iterator[tuple[list[int], Parts]]:
        """Numbers of some edges and their parts, the edges into a batch of targets after those into another.

        into: numbers of the edges into each target. sources: of each edge its source's number in ``carried``.
        gradients: of some targets, as `towards` gives them.
        """

        def run(some: Sequence[T]) -> tuple[list[int], Parts]:
            numbers = [number for target in some for number in into[target]]
            rows = [row for row, target in enumerate(some) for _ in into[target]]
            of_edges = torch.tensor([sources[number] for number in numbers])
            of_targets = torch.tensor(rows, device=self.texts.device)
            return numbers, self._parts(of_edges, of_targets, gradients(some), carried)

        return in_batches(list(into), run, size=self.at_once(batch_size))

    def _parts(
        self,
        sources: Int[Tensor, " edge"],
        rows: Int[Tensor, " edge"],
        gradients: Mapping[int, Float[Tensor, "target position d_model"]],
        carried: Carried,
    ) -> Parts:
        """Parts of edges from sources to the targets in these rows of the gradients."""
        found = [self._like.new_zeros(len(sources), len(self.layers), self.n_heads) for _ in range(2)]
        for number, layer in enumerate(self.layers):
            if layer in gradients:
                pulled = self.jacobians[layer].pulled(gradients[layer])
                for made, part in zip(found, _met(sources, rows, pulled, carried, layer), strict=True):
                    made[:, number] = part
        return Parts(self.layers, *found)

    def at_once(self, at_most: int) -> int:
        """How many targets or sources a batched pass takes: what each leaves in every block, and what one block makes
        of it."""
        adapter, like = self.subject.adapter, self._like
        n_positions = self.subject.clean.input_ids.shape[1]
        numbers = n_positions * adapter.d_model * (_KEPT * len(self.layers) + _MADE)
        return max(1, min(at_most, budget_of(adapter) // (numbers * like.element_size())))

    @property
    def n_heads(self) -> int:
        """Number of heads of a block."""
        return max((jacobian.attention.n_heads for jacobian in self.jacobians.values()), default=1)

    @property
    def _like(self) -> Tensor:
        return next(iter(self.subject.coders.values())).W_enc

    @cached_property
    def jacobians(self) -> dict[int, HeadJacobian]:
        """Of the attention of each block."""
        made = {}
        for layer in self.layers:
            x = self.run.reads[HookPoint(layer, "attn_in")].detach().to(self._like)
            keywords = self.subject.clean.arguments[layer][1]
            attention = attention_of(self.subject.adapter, layer, keywords, device=x.device, dtype=x.dtype)
            made[layer] = HeadJacobian(attention, x, self.backward.is_frozen)
        return made

    @cached_property
    def _stream(self) -> "_Stream":
        with direct_pass(
            self.subject, self.texts, backward=self.backward, cuts_attention=True, values=self._values
        ) as run:
            return _Stream(run, self.layers)

    def carried(self, n_sources: int, writes: Callable[[int], Write], *, batch_size: int) -> Carried:
        """What sources, by their numbers, bring to what attention reads in every block by way of the stream alone."""
        entries: list[tuple[Tensor, Tensor]] = []
        readings: dict[int, list[Reading]] = {layer: [] for layer in self.layers}
        for some in in_batches(range(n_sources), partial(self._entries, writes), size=self.at_once(batch_size)):
            entries.append(some[:2])
            for layer, reading in some[2].items():
                readings[layer].append(reading)
        return Carried(
            torch.cat([source for source, _ in entries]),
            torch.cat([position for _, position in entries]),
            {layer: _joined(parts) for layer, parts in readings.items()},
        )

    def _entries(
        self, writes: Callable[[int], Write], some: Sequence[int]
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], dict[int, Reading]]:
        moves = _stacked([writes(source) for source in some])
        there = torch.stack([move.ne(0).any(dim=-1) for move in moves.values()]).any(dim=0)
        rows, positions = there.nonzero(as_tuple=True)
        positions = positions + self.subject.first
        tangents = self._stream.carried(moves, first=self.subject.first)
        readings = {}
        for layer, jacobian in self.jacobians.items():
            nothing = jacobian.x.new_zeros(len(rows), jacobian.x.shape[-1])
            at = tangents[layer][rows, positions].to(nothing) if layer in tangents else nothing
            readings[layer] = jacobian.pushed(at, positions)
        return rows.cpu() + some[0], positions, readings


class _Stream:
    """The run in which what attention adds is constant, to carry changes forward through."""

    def __init__(self, run: DirectPass, layers: Sequence[int]) -> None:
        reads = {layer: run.reads[HookPoint(layer, "attn_in")] for layer in layers}
        self._reads = {layer: read for layer, read in reads.items() if read.requires_grad}
        # The derivative of a weighted sum is linear in the weights, and its derivative by them is what was carried.
        self._weights = [torch.zeros_like(read, requires_grad=True) for read in self._reads.values()]
        gradients = torch.autograd.grad(
            list(self._reads.values()), list(run.leaves.values()), self._weights, create_graph=True, allow_unused=True
        )
        self._gradients = {
            hook: gradient
            for hook, gradient in zip(run.leaves, gradients, strict=True)
            if gradient is not None and gradient.requires_grad
        }

    def carried(
        self, moves: Mapping[HookPoint, Float[Tensor, "source spliced d_out"]], *, first: int
    ) -> dict[int, Float[Tensor, "source position d_model"]]:
        """What comes to be read in each block of what sources write."""
        places = [place for place in moves if place in self._gradients]
        if not places:
            return {}
        found = torch.autograd.grad(
            [self._gradients[place] for place in places],
            self._weights,
            [_placed(moves[place], self._gradients[place], first=first) for place in places],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        return {layer: change[:, 0] for layer, change in zip(self._reads, found, strict=True) if change is not None}


def _placed(move: Tensor, like: Tensor, *, first: int) -> Float[Tensor, "source 1 position d_out"]:
    made = like.new_zeros(len(move), *like.shape)
    made[:, 0, first:] = move.to(like)
    return made


def _stacked(writes: Sequence[Write]) -> dict[HookPoint, Float[Tensor, "source spliced d_out"]]:
    made: dict[HookPoint, Tensor] = {}
    for row, write in enumerate(writes):
        for place, value in write.items():
            if place not in made:
                made[place] = value.new_zeros(len(writes), *value.shape)
            made[place][row] = value
    return made


def _joined(parts: Sequence[Reading]) -> Reading:
    def cat(found: Sequence[Tensor | None]) -> Tensor | None:
        known = [one for one in found if one is not None]
        return torch.cat(known) if known else None

    return Reading(
        torch.cat([part.values for part in parts]), cat([p.queries for p in parts]), cat([p.keys for p in parts])
    )


def _met(
    sources: Int[Tensor, " edge"], rows: Int[Tensor, " edge"], pulled: Reading, carried: Carried, layer: int
) -> tuple[Float[Tensor, "edge head"], Float[Tensor, "edge head"]]:
    """Of each edge what each head of a block moves and where it looks. rows: its target's in ``pulled``."""
    read = carried.readings[layer]
    moved = read.values.new_zeros(len(sources), read.values.shape[1])
    looked = torch.zeros_like(moved)
    edge, entry = (numbers.to(rows.device) for numbers in _entries_of(sources, carried.source))
    n_at_once = max(1, _AT_ONCE // max(1, read.values[0].numel()))
    for begin in range(0, len(edge), n_at_once):
        some = slice(begin, begin + n_at_once)
        at, of = carried.position[entry[some]], rows[edge[some]]
        moved.index_add_(0, edge[some], (pulled.values[of, :, at] * read.values[entry[some]]).sum(dim=-1))
        for slope, change in ((pulled.queries, read.queries), (pulled.keys, read.keys)):
            if slope is not None and change is not None:
                looked.index_add_(0, edge[some], (slope[of, :, at] * change[entry[some]]).sum(dim=-1))
    return moved, looked


def _entries_of(
    sources: Int[Tensor, " edge"], of_entries: Int[Tensor, " entry"]
) -> tuple[Int[Tensor, " both"], Int[Tensor, " both"]]:
    """Edges and the entries of their sources, in pairs. of_entries: the source of each, in order."""
    begins = torch.searchsorted(of_entries, sources)
    counts = torch.searchsorted(of_entries, sources, right=True) - begins
    edge = torch.arange(len(sources)).repeat_interleave(counts)
    within = torch.arange(len(edge)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return edge, begins[edge] + within
