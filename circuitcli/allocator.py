"""How the process gets memory from the system.

A tensor of a few megabytes is fresh memory by glibc's defaults: it is given back when it is freed, and the next one is
cleared page by page by the system, which can take as long as the work done on it. Models and SAEs make the same tensors
in every step, so freed memory is kept here and used again. The peak is lower where several threads run a model. Where
SAEs are trained and then measured with a model, whose tensors have other sizes, what is free is given back in between.
"""

import ctypes
import os
import sys
from collections.abc import Callable

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
# The heap grows by this much at once.
_GROWTH_BYTES = 64 * 2**20
_NEVER = -1


def keep_freed_memory() -> None:
    """Call it before the first tensor and before there are other threads. Settings that the user made stay."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    # Torch then asks for pages of 2 MB for large tensors, which are cleared, and found by the processor, faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    set_option = _of_glibc("mallopt")
    if set_option is None:
        return
    # All threads take from one heap, also large pieces. Of heaps for each thread, all would have to grow.
    for option, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_TOP_PAD, _GROWTH_BYTES),
    ):
        set_option(option, value)


def give_back_freed_memory() -> None:
    """Call it between two kinds of work, of which the second makes no use of the gaps that the first leaves."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the allocator, where this system's has it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
