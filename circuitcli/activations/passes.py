"""Forward passes whose activations go from the hook points straight to the files of a shard."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from circuitcli.activations.lanes import Scratch
from circuitcli.activations.plans import Collection, PlannedBatch
from circuitcli.activations.shard_files import ShardFiles
from circuitcli.activations.storage.disk import ALIGNMENT, DiskQueue
from circuitcli.activations.storage.shards import DTYPES
from circuitcli.activations.storage.stored_rows import CACHED_NUMBERS, RowSums, StoredRows
from circuitcli.hookpoints import HookPoint
from circuitcli.models import taps
from circuitcli.models.loading import LanguageModel
from circuitcli.text.blocks import Part, padded


class Stopped(Exception):
    """A forward pass was given up because the collection ends."""


class Passes:
    """Runs blocks through the model; several threads may do so at once."""

    def __init__(self, model: LanguageModel, collection: Collection, disk: DiskQueue, run: Callable[..., None]) -> None:
        self._model, self._disk, self._run = model, disk, run
        self._dtypes = {hook: DTYPES[collection.dtype_of(hook)] for hook in collection.hooks}
        self._scratch = Scratch()
        self._is_over = threading.Event()

    def stop(self) -> None:
        """Make the passes under way end at their next hook point."""
        self._is_over.set()

    @torch.inference_mode()
    def store(self, files: ShardFiles, planned: PlannedBatch) -> int:
        """Store the rows of a batch of a shard. Returns how many."""
        batch, device = padded(planned.blocks, pad_id=self._model.tokenizer.pad_id), self._model.adapter.device
        parts = batch.parts(max(1, CACHED_NUMBERS // self._model.adapter.d_model))
        on_device: dict[HookPoint, Tensor] = {}

        def see(hook: HookPoint, activation: Tensor) -> None:
            if self._is_over.is_set():
                raise Stopped
            if hook not in files.plan.hooks:
                return
            if activation.device.type == "cpu":
                offset = files.rows(hook).place(planned.pieces[0])
                dtype = self._dtypes[hook]
                rows, memory = self._rows(activation, parts, n_bos=batch.n_bos, offset=offset, dtype=dtype)
                files.store(hook, rows, planned.pieces, memory=memory, disk=self._disk)
            else:
                on_device[hook] = batch.stored(activation, self._dtypes[hook])

        mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
        self._run(batch.input_ids.to(device), mask, see)
        # A copy waits for the device: the whole pass is under way before the first.
        for hook, rows in on_device.items():
            offset = files.rows(hook).place(planned.pieces[0])
            memory, numbers = self._memory(rows.shape, offset=offset, dtype=rows.dtype)
            files.store(hook, StoredRows.of(rows, numbers), planned.pieces, memory=memory, disk=self._disk)
        return sum(block.n_rows for block in planned.blocks)

    def _rows(
        self, activation: Tensor, parts: Sequence[Part], *, n_bos: int, offset: int, dtype: torch.dtype
    ) -> tuple[StoredRows, Tensor]:
        """The rows to store, as `Batch.stored` gives them, and the memory of the disk's queue that they are in.

        Each part is rounded and summed up while it is in the processor's cache: reading all rows again for every step
        takes a tenth longer.
        """
        behind = activation[:, n_bos:]
        memory, rows = self._memory((parts[-1].rows.stop, activation.shape[-1]), offset=offset, dtype=dtype)
        sums = RowSums(*rows.shape, n_times=len(parts))
        for part in parts:
            values, stored = behind[part.blocks], rows[part.rows]
            if part.positions is None:
                stored.view(values.shape).copy_(values)
            else:
                rounded = self._scratch.take(values.shape, dtype).copy_(values).flatten(0, 1)
                torch.index_select(rounded, 0, part.positions, out=stored)
            sums.add(stored)
        return sums.over(rows), memory

    def _memory(self, shape: Sequence[int], *, offset: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Memory of the disk's queue, and a part of it as numbers of this shape, which lies as in the file."""
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        memory = self._disk.take(n_bytes + ALIGNMENT)
        first = (offset - memory.data_ptr()) % ALIGNMENT
        if first % dtype.itemsize:
            first = 0
        return memory, memory[first : first + n_bytes].view(dtype).view(shape)


@contextmanager
def passes(model: LanguageModel, collection: Collection, disk: DiskQueue) -> Iterator[Passes]:
    """While this is open, the model's hook points are read."""
    with taps.reading(model.adapter, collection.hooks) as run:
        yield Passes(model, collection, disk, run)
