"""Writing large pieces of files fast: past the system's page cache, by threads that mostly wait for the disk.

The page cache would copy what nobody reads soon into fresh memory, which costs the processor several times as much as
the transfer, and would drive everything else out. Where a file system offers no other way (O_DIRECT), it is used.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Every disk takes memory and places that are multiples of this.
ALIGNMENT = 4096
# A smaller write gains nothing.
_LEAST_DIRECT = 64 * 1024
_MOST_AT_ONCE = 4 * 2**20
_N_THREADS = 2
_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP)

_threads = threading.local()


class PlacedFile:
    """A file that exists, written at any places by any threads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR)
        self._direct = _open_direct(path)

    def write(self, content: memoryview, offset: int) -> None:
        """Write all of the bytes to a place. Raises OSError.

        Fastest if their address lies as far from a multiple of ``ALIGNMENT`` as the place: others are copied first.
        """
        first = -(-offset // ALIGNMENT) * ALIGNMENT
        last = (offset + len(content)) // ALIGNMENT * ALIGNMENT
        if self._direct is not None and last - first >= _LEAST_DIRECT:
            start, stop = first - offset, last - offset
            if self._write_direct(content[start:stop], first):
                # The ends share their page with what lies around.
                _write_all(self._file, content[:start], offset)
                _write_all(self._file, content[stop:], last)
                return
        _write_all(self._file, content, offset)

    def _write_direct(self, content: memoryview, offset: int) -> bool:
        """Write whole pages past the page cache. Returns False where the file system refuses to."""
        assert self._direct is not None
        try:
            if _address(content) % ALIGNMENT == 0:
                _write_all(self._direct, content, offset)
                return True
            memory = _aligned_memory()
            for at in range(0, len(content), _MOST_AT_ONCE):
                piece = content[at : at + _MOST_AT_ONCE]
                # Numpy copies without holding up the threads that run the model.
                memory[: len(piece)] = np.frombuffer(piece, np.uint8)
                _write_all(self._direct, memory[: len(piece)].data, offset + at)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            return False
        return True

    def sync(self) -> None:
        """Return when all is on the disk. Raises OSError."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file; again is allowed."""
        for number in (self._file, self._direct):
            if number is not None and number >= 0:
                os.close(number)
        self._file, self._direct = -1, None


def _open_direct(path: Path) -> int | None:
    # The flag is Linux's own.
    with suppress(OSError, AttributeError):
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return None


def _aligned_memory() -> np.ndarray:
    if not hasattr(_threads, "memory"):
        _threads.memory = np.frombuffer(mmap.mmap(-1, _MOST_AT_ONCE), np.uint8)
    memory: np.ndarray = _threads.memory
    return memory


def _address(content: memoryview) -> int:
    return int(np.frombuffer(content, np.uint8).ctypes.data)


def _write_all(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def n_buffers(n_producers: int) -> int:
    """How many pieces of memory keep producers and the disk's threads at work."""
    return 2 * (n_producers + _N_THREADS)


class DiskQueue:
    """Rows on their way to the disk, in memory of which there is so much and no more."""

    def __init__(self, n_buffers: int, *, pinned: bool = False) -> None:
        """pinned: whether a GPU writes into the memory."""
        self._executor = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="disk")
        self._free: list[Tensor] = [torch.empty(0, dtype=torch.uint8) for _ in range(n_buffers)]
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._pinned = pinned

    def take(self, n_bytes: int) -> Tensor:
        """So many bytes of memory, as soon as some is free. Raises the error of an earlier write."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or bool(self._free))
            if self._error is not None:
                raise self._error
            memory = self._free.pop()
        # Fresh memory costs more than all that is done with it here, so it is used again and again.
        if len(memory) < n_bytes:
            memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        return memory

    def submit(self, write: Callable[[], None], memory: Tensor) -> "Future[None]":
        """Let a thread write what is in the memory, which is free for others after it."""
        return self._executor.submit(self._work, write, memory)

    def _work(self, write: Callable[[], None], memory: Tensor) -> None:
        error: BaseException | None = None
        try:
            write()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._changed:
                self._free.append(memory)
                self._error = self._error or error
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for the writes under way; those that were not begun are dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)
