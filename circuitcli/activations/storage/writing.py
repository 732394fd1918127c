"""Writing the file of a shard: under another name, in any order, by several threads, whole or not at all.

HDF5 lays the file out; its content is then written by plain file operations, because HDF5 itself crashes the process
when it runs out of disk space.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from circuitcli import runs
from circuitcli.activations.storage.disk import PlacedFile
from circuitcli.activations.storage.shards import DIGEST_BYTES, DTYPES, FILE_DTYPES, ROWS, Header, Summary, digest
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.runs import make_folder

# Larger than what HDF5 writes beside the data sets.
_LAYOUT_BYTES = 16_384


class Span(NamedTuple):
    """Bytes ``start`` to ``stop`` of some rows, and where in the file they belong."""

    start: int
    stop: int
    place: int


class RowsWriter:
    """One hook point's rows of one shard.

    They come in pieces, each with a digest of its own: so they are hashed while they are at hand, and the file's bytes
    do not depend on the order in which they came.
    """

    def __init__(
        self,
        path: Path,
        *,
        hook: HookPoint,
        pieces: Sequence[int],
        d_model: int,
        dtype: str,
        first_row: int = 0,
        fingerprint: str = "",
    ) -> None:
        """pieces: number of rows of each. Raises InputError if the file cannot be made."""
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._hook = hook
        self._header = Header(str(hook), dtype, sum(pieces), d_model, first_row, fingerprint)
        row_bytes = d_model * DTYPES[dtype].itemsize
        # First byte of each piece among the rows, and where they end.
        self._edges = [0, *(n_rows * row_bytes for n_rows in accumulate(pieces))]
        self._summary = _blank(pieces, d_model)
        self._sums: dict[int, StoredRows] = {}
        with _disk_errors(path):
            make_folder(path.parent)
            try:
                self._offsets = self._create()
                self._file = PlacedFile(self.partial)
            except OSError:
                self.partial.unlink(missing_ok=True)
                raise

    def _create(self) -> dict[str, int]:
        """Lay out the file. Returns where each data set is to be written."""
        small = self._summary.parts()
        with self.partial.open("wb") as probe:
            # A file that the disk cannot take must fail here and not inside HDF5.
            probe.write(bytes(_LAYOUT_BYTES))
            n_bytes = sum(part.nbytes for part in small.values()) + self._edges[-1]
            probe.truncate(_LAYOUT_BYTES + n_bytes)
        with h5py.File(self.partial, "w") as file:
            for name, value in asdict(self._header).items():
                _set_attribute(file, name, np.array(value.encode() if isinstance(value, str) else value))
            offsets = {name: _reserve(file, name, part.dtype, part.shape) for name, part in small.items()}
            shape = (self._header.n_rows, self._header.d_model)
            return offsets | {ROWS: _reserve(file, ROWS, FILE_DTYPES[self._header.dtype], shape)}

    def put(self, rows: StoredRows, pieces: Sequence[int]) -> None:
        """Store some of the pieces, given by their numbers, which lie one behind the other in ``rows``.

        Raises InputError for NaN, infinity, or a full disk.
        """
        self.write(rows.values, self.accept(rows, pieces))

    def place(self, piece: int) -> int:
        """Where in the file a piece begins."""
        return self._offsets[ROWS] + self._edges[piece]

    def accept(self, rows: StoredRows, pieces: Sequence[int]) -> list[Span]:
        """Take pieces into sums and digests. Returns what of the rows' bytes is to be written where.

        Raises InputError for NaN or infinity.
        """
        if not rows.is_finite:
            raise _not_finite(rows.values, hook=self._hook, dtype=self._header.dtype)
        self._sums[min(pieces)] = replace(rows, values=rows.values[:0])
        words, spans, start = _bytes(rows.values), [], 0
        for piece in pieces:
            stop = start + self._edges[piece + 1] - self._edges[piece]
            self._summary.piece_digests[piece] = digest(words[start:stop])
            spans.append(Span(start, stop, self.place(piece)))
            start = stop
        return spans

    def write(self, values: Tensor, spans: Sequence[Span]) -> None:
        """Write rows that were accepted. Raises InputError for a full disk."""
        words = _bytes(values)
        with _disk_errors(self.path):
            for span in spans:
                self._file.write(words[span.start : span.stop], span.place)

    def finish(self) -> None:
        """Write what is told about the rows, which are all there; the file keeps its partial name."""
        # In the order of the rows: sums of floats depend on it.
        for _, rows in sorted(self._sums.items()):
            self._summary.sum[:] += rows.sum.numpy()
            self._summary.norms[:] += (rows.sum_norm, rows.sum_square_norm)
        self._summary.digest[:] = self._summary.digest_with(self._header)
        with _disk_errors(self.path):
            for name, part in self._summary.parts().items():
                self._file.write(memoryview(part.tobytes()), self._offsets[name])

    def sync(self) -> None:
        """Bring the finished file to the disk. Of several files, finish all first: then they go there together."""
        with _disk_errors(self.path):
            self._file.sync()
            self._file.close()

    def publish(self) -> None:
        """Give the file its name."""
        with _disk_errors(self.path):
            self.partial.replace(self.path)

    def remove(self) -> None:
        """Let go of the file, and of what was not published."""
        self._file.close()
        self.partial.unlink(missing_ok=True)


def _blank(pieces: Sequence[int], d_model: int) -> Summary:
    """The summary of a file whose rows are still to come."""
    digests, whole = np.zeros((len(pieces), DIGEST_BYTES), np.uint8), np.zeros(DIGEST_BYTES, np.uint8)
    return Summary(np.array(pieces, "<i8"), digests, np.zeros(d_model, "<f8"), np.zeros(2, "<f8"), whole)


def _reserve(file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...]) -> int:
    """Make a data set whose content is written past HDF5. Returns where it lies in the file."""
    whole = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    whole.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    whole.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    whole.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return int(h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), whole).get_offset())


def remove_partials(root: Path) -> None:
    """Remove the files that a broken collection left unfinished."""
    for path in root.glob("*/*.partial"):
        path.unlink()


def _set_attribute(file: h5py.File, name: str, value: np.ndarray) -> None:
    # Several times as fast as `file.attrs`, and each shard has one file for each hook point.
    kind, space = h5py.h5t.py_create(value.dtype), h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5a.create(file.id, name.encode(), kind, space).write(value)


def _bytes(values: Tensor) -> memoryview:
    words: memoryview = values.view(torch.uint8).numpy().data.cast("B")
    return words


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into the run's own error."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise runs.write_error(path, OSError(error.errno or 0, reason)) from error


def _not_finite(values: Tensor, *, hook: HookPoint, dtype: str) -> InputError:
    if bool(values.isnan().any()):
        return InputError(
            f"{hook} has activations that are not a number (NaN)",
            hint="check the model; half precision may not suit it: --set model.dtype=float32",
        )
    if dtype == "float16":
        return InputError(
            f"{hook} has activations above 65504, the largest float16",
            hint="store them with --set data.dtype=bfloat16 --force (or float32)",
        )
    return InputError(f"{hook} has infinite activations", hint="run the model with --set model.dtype=float32")
