"""Bytes written past the page cache are those that were to be written, wherever they lie in memory and in the file."""

from pathlib import Path

import numpy as np
import pytest

from circuitcli.activations.storage import disk
from circuitcli.activations.storage.disk import ALIGNMENT, PlacedFile

N_BYTES = 5 * 2**20 + 123


def content_at(remainder: int) -> memoryview:
    """Random bytes whose address has this remainder."""
    memory = np.empty(N_BYTES + 2 * ALIGNMENT, np.uint8)
    first = (remainder - memory.ctypes.data) % ALIGNMENT
    memory[:] = np.random.default_rng(remainder).integers(0, 256, len(memory), np.uint8)
    return memory[first : first + N_BYTES].data


@pytest.mark.parametrize("offset", [0, 100, ALIGNMENT, 3 * ALIGNMENT + 2050])
@pytest.mark.parametrize("remainder", [0, 2, 100, 2050])
def test_what_is_written_is_there_and_what_lies_around_stays(
    offset: int, remainder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copies = []
    memory = disk._aligned_memory
    monkeypatch.setattr(disk, "_aligned_memory", lambda: copies.append(1) or memory())
    path, around = tmp_path / "file", b"\xaa" * (offset + N_BYTES + 5000)
    path.write_bytes(around)
    file, content = PlacedFile(path), content_at(remainder)
    file.write(content, offset)
    file.sync()
    file.close()
    assert path.read_bytes() == around[:offset] + bytes(content) + around[offset + N_BYTES :]
    if file_is_direct(tmp_path):
        # What lies in memory as in the file goes to the disk from where it is.
        assert bool(copies) == (remainder != offset % ALIGNMENT)


def file_is_direct(folder: Path) -> bool:
    (folder / "other").write_bytes(b"")
    found = disk._open_direct(folder / "other")
    return found is not None
