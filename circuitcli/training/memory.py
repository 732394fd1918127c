"""How much memory was needed."""

import resource
import sys

import torch


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the GPU if it works there, else by the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
