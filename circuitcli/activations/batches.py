"""Cached rows in random order, the same at every reading, from any step on.

An epoch visits every row once. Its rows are cut into chunks, the chunks are permuted and dealt into pools, and the rows
of a pool are permuted. All of it follows from the seed, the epoch and the pool, so going on at a step reads no more
than the pool that the step is in.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.activations.background import ahead
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

_CHUNK_ROWS = 256
# Small pools still mix text from so many places.
_CHUNKS_IN_POOL = 16

# Widths may differ from hook point to hook point.
RowBatch = dict[HookPoint, Float[Tensor, "batch _"]]
_Memory = dict[HookPoint, Tensor]


@dataclass(frozen=True)
class _Pool:
    """Rows in memory, in their stored dtype, and the order in which they are given out.

    Their memory is used again for the pool after the next.
    """

    rows: dict[HookPoint, Tensor]
    order: Int[Tensor, " row"]

    def take(self, start: int, stop: int) -> RowBatch:
        chosen = self.order[start:stop]
        return {hook: rows[chosen].float() for hook, rows in self.rows.items()}


class ShuffledBatches:
    """Batches of ``batch_size`` rows, float32 on the CPU, the same rows for all hook points, over as many epochs as
    ``n_tokens`` takes; a batch may end one epoch and begin the next.

    ``pool_tokens`` bounds the rows in memory: half of them are given out while a thread reads the other half. Rows that
    are no more than half are read once.
    """

    def __init__(
        self,
        cache: ActivationCache,
        *,
        hooks: Sequence[HookPoint],
        batch_size: int,
        n_tokens: int,
        seed: int,
        pool_tokens: int,
        stop_row: int,
    ) -> None:
        """Raises InputError if rows 0 to ``stop_row`` are none or more than the cache holds."""
        if not 0 < stop_row <= cache.n_tokens:
            raise InputError(
                f"cannot draw batches from the first {stop_row} of {cache.n_tokens} cached tokens",
                hint="collect more: circuit collect --force --set data.tokens=NUMBER",
            )
        self._cache, self._hooks = cache, tuple(hooks)
        self.batch_size, self._n_rows = batch_size, stop_row
        self._seed = seed % 2**63
        half = max(1, pool_tokens // 2)
        self._chunk_rows = max(1, min(_CHUNK_ROWS, half // _CHUNKS_IN_POOL))
        self._pool_chunks = max(1, half // self._chunk_rows)
        self.n_steps = max(1, n_tokens // batch_size)

    def from_step(self, step: int) -> Iterator[RowBatch]:
        """Batches ``step`` to ``n_steps``, as they come in an unbroken reading."""
        pools = self._pools(step * self.batch_size, self.n_steps * self.batch_size)
        with closing(ahead(pools)) as read_ahead:
            yield from islice(self._batches(read_ahead), max(0, self.n_steps - step))

    def _batches(self, pools: Iterator[_Pool]) -> Iterator[RowBatch]:
        parts: list[dict[HookPoint, Tensor]] = []
        missing = self.batch_size
        for pool in pools:
            start = 0
            while start < len(pool.order):
                stop = min(start + missing, len(pool.order))
                parts.append(pool.take(start, stop))
                missing -= stop - start
                start = stop
                if not missing:
                    yield _joined(parts)
                    parts, missing = [], self.batch_size
            # The next pool is waited for with this one out of memory.
            del pool

    def _pools(self, position: int, end: int) -> Iterator[_Pool]:
        """Pools that hold positions ``position`` to ``end`` of the stream of all epochs."""
        # One is read while the one before is given out. Fresh memory for each would find the old in pieces.
        memories = cycle([_Memory()] if self._is_one_pool else [_Memory(), _Memory()])
        while position < end:
            epoch, skipped = divmod(position, self._n_rows)
            for number, chunks in enumerate(self._dealt(epoch)):
                if position >= end:
                    return
                size = self._size(chunks)
                if skipped >= size:
                    skipped -= size
                    continue
                yield self._read(chunks, next(memories), seed=[self._seed, epoch, number], skipped=skipped)
                position += size - skipped
                skipped = 0

    @property
    def _is_one_pool(self) -> bool:
        """Whether all rows fit in one: every epoch gives out the same memory in another order."""
        return self._n_rows <= self._pool_chunks * self._chunk_rows

    def _dealt(self, epoch: int) -> Iterator[list[int]]:
        """The chunks of each pool of an epoch."""
        n_chunks = -(-self._n_rows // self._chunk_rows)
        order = np.random.default_rng([self._seed, epoch]).permutation(n_chunks)
        for first in range(0, n_chunks, self._pool_chunks):
            # Sorted, so that the disk is read forwards; the pool's own permutation does the mixing.
            yield sorted(order[first : first + self._pool_chunks].tolist())

    def _length(self, chunk: int) -> int:
        return min(self._chunk_rows, self._n_rows - chunk * self._chunk_rows)

    def _size(self, chunks: list[int]) -> int:
        return sum(self._length(chunk) for chunk in chunks)

    def _read(self, chunks: list[int], memory: _Memory, *, seed: list[int], skipped: int) -> _Pool:
        size = self._size(chunks)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
        for hook in self._hooks:
            is_there = hook in memory
            if not is_there:
                n_rows = min(self._n_rows, self._pool_chunks * self._chunk_rows)
                memory[hook] = torch.empty(n_rows, self._cache.d_model(hook), dtype=self._cache.dtype(hook))
            if not (is_there and self._is_one_pool):
                self._fill(memory[hook], hook, chunks)
        return _Pool({hook: rows[:size] for hook, rows in memory.items()}, order[skipped:])

    def _fill(self, rows: Float[Tensor, "row d_model"], hook: HookPoint, chunks: list[int]) -> None:
        done = 0
        for chunk in chunks:
            length = self._length(chunk)
            self._cache.read_into(rows[done : done + length], hook, chunk * self._chunk_rows)
            done += length


def _joined(parts: list[dict[HookPoint, Tensor]]) -> RowBatch:
    if len(parts) == 1:
        return parts[0]
    return {hook: torch.cat([part[hook] for part in parts]) for hook in parts[0]}
