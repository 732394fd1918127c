"""How much memory was needed, and whether there is enough of it at all."""

import os
import resource
import sys
from pathlib import Path

import torch

from circuitcli.errors import ToolError

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"
# Of containers; "max" where there is none.
_LIMIT = Path("/sys/fs/cgroup/memory.max")


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


def check_fits(n_bytes: int, device: torch.device, *, what: str, hint: str) -> None:
    """Raise ToolError if not even these bytes fit: systems that promise more than they have kill without a word."""
    if n_bytes > (total := total_bytes(device)):
        raise ToolError(f"{what} need {_gigabytes(n_bytes)} or more, and {device} has {_gigabytes(total)}", hint=hint)


def total_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of this machine, as far as its processes may use it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(_LIMIT.read_text()))
    except (OSError, ValueError):
        return physical


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
