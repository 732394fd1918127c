"""Batches on their way to a GPU."""

from collections.abc import Iterator
from contextlib import closing

import torch

from circuitcli.activations.background import ahead
from circuitcli.training.architectures.trainable import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; for a GPU they are there, each copied while the one before it is worked on.

    Other devices get them as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    with closing(ahead(_copies(batches, device))) as copied:
        for batch in copied:
            for rows in batch.values():
                # Made on another stream: its memory must not be given away before the work on this one is done.
                rows.record_stream(torch.cuda.current_stream(device))
            yield batch


def _copies(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies from pinned memory, which do not hold up the GPU, on a stream of their own."""
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            there = {hook: rows.pin_memory().to(device, non_blocking=True) for hook, rows in batch.items()}
        stream.synchronize()
        yield there
