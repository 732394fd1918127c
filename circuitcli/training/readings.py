"""Batches of text that the model reads while SAEs learn, in random order, the same at every reading, from any step on.

A block is read whole, so a batch is a number of blocks whose rows make ``batch_size`` on average. The blocks of each
epoch are permuted; their order follows from the seed and the epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.evaluation.spliced import MISSED_TARGET, Block, Texts
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import BlockPass, block_pass, first_block, rerun
from circuitcli.models.taps import Callback
from circuitcli.training.architectures.trainable import Batch


@dataclass(frozen=True)
class Reading(Mapping[HookPoint, Float[Tensor, "row d_model"]]):
    """Some text and the model's pass over it; as a mapping, the activations that collecting would store.

    stored: where those are. predicts: positions with a token to predict.
    """

    adapter: ModelAdapter
    clean: BlockPass
    stored: Bool[Tensor, "text position"]
    predicts: Bool[Tensor, "text position"]

    @classmethod
    def of(
        cls, adapter: ModelAdapter, blocks: Sequence[Block], hooks: tuple[HookPoint, ...], *, pad_id: int
    ) -> "Reading":
        """Read the blocks, of at least two tokens each, and keep the activations at the hook points."""
        ((ids, mask, target, stored),) = Texts.of(blocks, pad_id=pad_id, batch_size=len(blocks), device=adapter.device)
        clean = block_pass(adapter, ids, mask, hooks, starts=map(first_block, hooks))
        return cls(adapter, clean, stored, target != MISSED_TARGET)

    def __getitem__(self, hook: HookPoint) -> Float[Tensor, "row d_model"]:
        return self.rows(self.clean.activations[hook])

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self.clean.activations)

    def __len__(self) -> int:
        return len(self.clean.activations)

    def rows(self, activation: Float[Tensor, "text position d_model"]) -> Float[Tensor, "row d_model"]:
        """What of an activation would be stored, in float32 at least."""
        rows = activation[self.stored.to(activation.device)]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def again(
        self, hook: HookPoint, rows: Float[Tensor, "row d_model"], taps: Mapping[HookPoint, Callback]
    ) -> Float[Tensor, "text position d_model"]:
        """Output of the last block when these rows stand at a hook point where its own would be stored.

        Only the blocks behind the hook point are run; ``taps`` see later hook points.
        """

        def put(activation: Tensor) -> Tensor:
            changed = activation.clone()
            changed[self.stored.to(changed.device)] = rows.to(changed)
            return changed

        n_texts = len(self.clean.input_ids)
        return rerun(self.adapter, self.clean, {hook: put, **taps}, rows=n_texts, start=first_block(hook))


@dataclass(frozen=True)
class _Text:
    """One block, with the places of tokens that have a row."""

    ids: list[int]
    positions: list[int]


class TextBatches:
    """Readings of the cache's text up to a row, over as many epochs as ``n_tokens`` takes."""

    def __init__(
        self,
        cache: ActivationCache,
        adapter: ModelAdapter,
        *,
        pad_id: int,
        batch_size: int,
        n_tokens: int,
        seed: int,
        stop_row: int,
    ) -> None:
        """Raises InputError if rows 0 to ``stop_row`` hold no whole block of two tokens."""
        self.adapter, self._hooks, self._pad_id = adapter, cache.hooks, pad_id
        self.batch_size, self._seed = batch_size, seed % 2**63
        self.n_steps = max(1, n_tokens // batch_size)
        ids, positions = [], []
        for block in cache.blocks(0, stop_row):
            if len(block.ids) > 1:
                # Lists of numbers would take ten times the memory.
                ids.append(np.array(block.ids, dtype=np.int32))
                positions.append(np.array(block.positions, dtype=np.int32))
        if not ids:
            raise InputError(
                "the cache holds no text to read again", hint="collect more: circuit collect --force --tokens 100000"
            )
        self._ids, self._id_edges = np.concatenate(ids), [0, *accumulate(map(len, ids))]
        self._positions, self._position_edges = np.concatenate(positions), [0, *accumulate(map(len, positions))]
        self.n_blocks = len(ids)
        self.blocks_in_batch = max(1, round(batch_size * self.n_blocks / len(self._positions)))

    def from_step(self, step: int) -> Iterator[Reading]:
        """Readings ``step`` to ``n_steps``, as they come in an unbroken reading of all of them."""
        for index in range(step, self.n_steps):
            texts = [self._text(number) for number in self.blocks_of(index)]
            yield Reading.of(self.adapter, texts, self._hooks, pad_id=self._pad_id)

    def blocks_of(self, step: int) -> list[int]:
        """The numbers of the blocks of a batch; it may end one epoch and begin the next."""
        numbers: list[int] = []
        first, stop = step * self.blocks_in_batch, (step + 1) * self.blocks_in_batch
        while first < stop:
            epoch, start = divmod(first, self.n_blocks)
            order = np.random.default_rng([self._seed, epoch]).permutation(self.n_blocks)
            numbers += order[start : start + stop - first].tolist()
            first += min(stop - first, self.n_blocks - start)
        return numbers

    def _text(self, number: int) -> _Text:
        ids = self._ids[self._id_edges[number] : self._id_edges[number + 1]]
        positions = self._positions[self._position_edges[number] : self._position_edges[number + 1]]
        return _Text(ids.tolist(), positions.tolist())


class RowsThenTexts:
    """Batches of rows in random order up to a step, readings from there on."""

    def __init__(self, rows: ShuffledBatches, texts: TextBatches, *, n_row_steps: int) -> None:
        self._rows, self._texts, self._n_row_steps = rows, texts, n_row_steps
        self.batch_size, self.n_steps = rows.batch_size, rows.n_steps

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches ``step`` to ``n_steps``."""
        if step < self._n_row_steps:
            yield from islice(self._rows.from_step(step), self._n_row_steps - step)
        yield from self._texts.from_step(max(step, self._n_row_steps))
