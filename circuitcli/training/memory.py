"""How much memory was needed."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the GPU if it works there, else by the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(peak_process_bytes() / 2**20, 1)


def peak_process_bytes() -> int:
    """Most memory that this process held so far.

    What getrusage tells begins, on Linux, with the peak of the process that started this one.
    """
    if _STATUS.exists():
        return 1024 * next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if _PEAK in line)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
