"""How a GPU multiplies numbers of 32 bits while SAEs learn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_cores(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """While this is open, NVIDIA's GPUs multiply float32 in TF32, with 10 bits after the point and sums in float32.

    Their tensor cores do so several times as fast. Other devices multiply as they always do.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled and device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
