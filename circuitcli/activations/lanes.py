"""Several batches at once: each processor core, or a few of them, takes a batch of its own through the model.

On a CPU that is faster than one batch over all cores, which wait for each other in every operation, and storing one
batch goes on while the model runs on another. A GPU is kept busy while rows of another batch come from it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from circuitcli.activations.background import Worker
from circuitcli.models.adapter import ModelAdapter

# Each has activations of a batch in memory.
MOST_LANES = 8
_GPU_LANES = 2
# More at once finds less of itself in a core's cache, less costs more calls: tokens, or numbers of a narrow model.
_CPU_TOKENS, _CPU_NUMBERS = 2048, 2**20


def n_lanes(adapter: ModelAdapter) -> int:
    """How many batches are under way at once; one for a model whose parts are moved between devices as it runs."""
    if getattr(adapter.model, "hf_device_map", None):
        return 1
    return lanes_on(adapter.device.type)


def lanes_on(device: str) -> int:
    """How many batches are under way at once on a device of this type."""
    return min(MOST_LANES, torch.get_num_threads()) if device == "cpu" else _GPU_LANES


def blocks_at_once(batch_size: int, *, block_length: int, d_model: int, device: str) -> int:
    """How many blocks of a batch go through the model together, on a device of this type."""
    if device != "cpu":
        return batch_size
    return min(batch_size, max(1, max(_CPU_TOKENS, _CPU_NUMBERS // d_model) // block_length))


@contextmanager
def lanes(adapter: ModelAdapter) -> Iterator[Worker]:
    """Threads that share the processor's cores among them."""
    n_threads, n = torch.get_num_threads(), n_lanes(adapter)
    each = max(1, n_threads // n)
    try:
        with Worker(threads=n, waiting=2 * n, begin=lambda: torch.set_num_threads(each)) as worker:
            yield worker
    finally:
        # The number holds for the thread that sets it, and for those that begin later.
        torch.set_num_threads(n_threads)


class Scratch(threading.local):
    """Memory in which each thread works on rows; it is used again, because fresh memory costs more than the work."""

    def __init__(self) -> None:
        self._flat = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with any content, which holds until the next is taken."""
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        if self._flat.numel() < n_bytes:
            self._flat = torch.empty(n_bytes, dtype=torch.uint8)
        return self._flat[:n_bytes].view(dtype).view(shape)
