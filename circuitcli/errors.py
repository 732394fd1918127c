"""What can go wrong and what the user can do about it.

CircuitError            1  fault
├── SettingsError       2  usage or settings
├── InputError          3  missing, damaged or mismatching input
├── ToolError           4  missing program, device or network
└── ThresholdError      5  below the threshold that was asked for

An interrupted command exits with 130 and a terminated one with 143, as shells do.
"""

import errno
import sys
from enum import IntEnum

# What torch says on processors: its allocator, mmap, oneDNN, and sizes that have no place in 64 bits.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Storage size calculation overflowed",
    "bad allocation",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class ExitStatus(IntEnum):
    """What the command tells the shell."""

    DONE = 0
    FAULT = 1
    USAGE = 2
    INPUT = 3
    TOOL = 4
    THRESHOLD = 5
    INTERRUPTED = 130
    TERMINATED = 143


class CircuitError(Exception):
    """Something the user can act on: what was wrong and, as ``hint``, a command or an option."""

    exit_status = ExitStatus.FAULT
    # Set where the error came before anything in the run was changed.
    changed_nothing = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(CircuitError):
    """A flag, a setting or a file of settings makes no sense."""

    exit_status = ExitStatus.USAGE


class InputError(CircuitError):
    """Records, activations, weights or text are missing, damaged or do not fit together."""

    exit_status = ExitStatus.INPUT


class ToolError(CircuitError):
    """A program, a device, a package or the network is missing."""

    exit_status = ExitStatus.TOOL


class ThresholdError(CircuitError):
    """A score is below what was asked for."""

    exit_status = ExitStatus.THRESHOLD


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something did not fit into the memory of this machine or of its GPU.

    Python, NumPy and torch on a GPU have errors for that; torch on a processor has only texts.
    """
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError"):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, CircuitError) and error.__context__ is not None:
        # A library's error that was wrapped at its door.
        return is_out_of_memory(error.__context__)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What a library's error says, without its later paragraphs; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def how_to_go_on() -> str:
    """What to tell someone whose command broke off: with ``--force`` it would begin anew, and graph-grad, which takes
    all of a graph's numbers together, always does."""
    if sys.argv[1:2] == ["graph-grad"]:
        return "the same command finds this graph anew; what is finished in the run is kept"
    again = "the same command without --force" if "--force" in sys.argv else "the same command"
    return f"finished work is kept; {again} goes on from there"
