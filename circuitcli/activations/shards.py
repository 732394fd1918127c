"""One HDF5 file for each hook point and shard, beside one for the tokens of the shard (`token_shards`).

    ROOT/<hook>/00017.h5    activations (rows, d_model) little-endian float32, float16, or bfloat16 as uint16 words;
                            sum (d_model) float64; attributes hook, dtype, n_rows, digest, sum_norm, sum_square_norm

Files are written as ``*.partial`` and renamed, the tokens last: a tokens file stands for a whole shard. All hook points
have the same rows in the same order. Rows lie uncompressed in one piece, so that they are read and written by
plain file operations: HDF5 itself crashes the process when it runs out of disk space.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FILE_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_ROWS = "activations"
_NO_DIGEST = "sha256:" + 64 * "0"
# Larger than any header of a shard.
_HEADER_BYTES = 65_536
_PIECE_BYTES = 4 * 2**20
_SUMMED_ROWS = 1024


def hook_path(root: Path, hook: HookPoint, index: int) -> Path:
    """Where one hook point's rows of a shard are."""
    return root / str(hook) / f"{index:05d}.h5"


@dataclass(frozen=True)
class StoredRows:
    """Rows as they are stored, on the CPU, with the float64 sums over them: rows, their norms, their squared norms.

    The sums are of the rounded rows, taken in float32 over 1024 rows and in float64 over those: exact to about 1e-6.
    """

    values: Float[Tensor, "row d_model"]
    sum: Float[Tensor, " d_model"]
    sum_norm: float
    sum_square_norm: float

    @classmethod
    def of(cls, values: Float[Tensor, "row d_model"]) -> "StoredRows":
        """Sum up rows, already in the dtype to store, on the device where they are."""
        # Pieces, so that the float32 copy stays in the processor's cache.
        parts = torch.stack([_sums(piece.float()) for piece in values.split(_SUMMED_ROWS)])
        sums = parts.cpu().double().sum(dim=0)  # (d_model + 2)
        return cls(values.contiguous().cpu(), sums[:-2], float(sums[-2]), float(sums[-1]))

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return math.isfinite(self.sum_square_norm)


def _sums(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " d_model_and_2"]:
    """Sum of the rows, then of their norms, then of their squared norms."""
    norms = torch.linalg.vector_norm(rows, dim=-1)
    return torch.cat([rows.sum(dim=0), norms.sum()[None], norms.square().sum()[None]])


class RowsWriter:
    """One hook point's rows of one shard, written to ``*.partial`` in any order and then published."""

    def __init__(self, path: Path, *, hook: HookPoint, n_rows: int, d_model: int, dtype: str) -> None:
        """Raises InputError if the file cannot be made."""
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._hook, self._dtype = hook, dtype
        self._row_bytes = d_model * DTYPES[dtype].itemsize
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._sum_norm = self._sum_square_norm = 0.0
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._offset = self._create(n_rows, d_model)
            self._file = self.partial.open("r+b", buffering=0)

    def _create(self, n_rows: int, d_model: int) -> int:
        """Write a file whose rows are still missing. Returns where they will be."""
        with self.partial.open("wb") as probe:
            # A file that the disk cannot take must fail here and not inside HDF5.
            probe.write(bytes(_HEADER_BYTES))
            probe.truncate(_HEADER_BYTES + n_rows * self._row_bytes)
        with h5py.File(self.partial, "w") as file:
            file.attrs.update(hook=str(self._hook), dtype=self._dtype, n_rows=n_rows)
            file.attrs.update(digest=np.bytes_(_NO_DIGEST), sum_norm=0.0, sum_square_norm=0.0)
            file.create_dataset("sum", data=np.zeros(d_model))
            whole = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            whole.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            whole.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            whole.set_obj_track_times(False)
            kind = h5py.h5t.py_create(np.dtype(_FILE_DTYPES[self._dtype]), logical=True)
            space = h5py.h5s.create_simple((n_rows, d_model))
            return int(h5py.h5d.create(file.id, _ROWS.encode(), kind, space, whole).get_offset())

    def put(self, rows: StoredRows, spans: Iterable[tuple[int, int]]) -> None:
        """Store consecutive pieces of the rows, each given by its first row in the shard and its number of rows.

        Raises InputError for NaN, infinity, or a full disk.
        """
        if not rows.is_finite:
            raise _not_finite(rows.values, hook=self._hook, dtype=self._dtype)
        self._sum += rows.sum
        self._sum_norm += rows.sum_norm
        self._sum_square_norm += rows.sum_square_norm
        words = rows.values.view(torch.uint8).numpy()  # (row, bytes)
        taken = 0
        with _disk_errors(self.path):
            for first, n_rows in spans:
                self._file.seek(self._offset + first * self._row_bytes)
                _write_all(self._file, words[taken : taken + n_rows].data.cast("B"))
                taken += n_rows

    def finish(self) -> None:
        """Complete the file and bring it to the disk, still under its partial name."""
        with _disk_errors(self.path):
            with h5py.File(self.partial, "r+") as file:
                file["sum"][...] = self._sum.numpy()
                file.attrs.modify("digest", np.bytes_(self._digest(file[_ROWS].nbytes)))
                file.attrs.modify("sum_norm", self._sum_norm)
                file.attrs.modify("sum_square_norm", self._sum_square_norm)
            os.fsync(self._file.fileno())
            self._file.close()

    def _digest(self, n_bytes: int) -> str:
        digest = hashlib.sha256()
        self._file.seek(self._offset)
        for at in range(0, n_bytes, _PIECE_BYTES):
            digest.update(self._file.read(min(_PIECE_BYTES, n_bytes - at)))
        return "sha256:" + digest.hexdigest()

    def publish(self) -> None:
        """Give the file its name."""
        with _disk_errors(self.path):
            self.partial.replace(self.path)

    def close(self) -> None:
        """Let go of the file, which stays as it is."""
        self._file.close()


def remove_partials(root: Path) -> None:
    """Remove the files that a broken collection left unfinished."""
    for path in root.glob("*/*.partial"):
        path.unlink()


def _write_all(file: io.FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


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
            hint="store them with --set data.dtype=bfloat16 (or float32)",
        )
    return InputError(f"{hook} has infinite activations", hint="run the model with --set model.dtype=float32")


@dataclass(frozen=True)
class RowsShard:
    """One hook point's rows of one shard, ready to be read; ``offset`` is where they begin in the file."""

    path: Path
    offset: int
    n_rows: int
    d_model: int
    dtype: str
    digest: str
    sum_norm: float
    sum_square_norm: float

    @classmethod
    def open(cls, path: Path) -> "RowsShard":
        """Read everything but the rows. Raises InputError, naming the file, if it is missing or damaged."""
        with opened(path) as file:
            rows, facts = file[_ROWS], dict(file.attrs)
            if facts["dtype"] not in DTYPES or rows.shape[0] != facts["n_rows"] or rows.chunks is not None:
                raise damaged(path, "its rows are not as its header says")
            return cls(
                path=path,
                offset=int(rows.id.get_offset()),
                n_rows=int(rows.shape[0]),
                d_model=int(rows.shape[1]),
                dtype=str(facts["dtype"]),
                digest=facts["digest"].decode(),
                sum_norm=float(facts["sum_norm"]),
                sum_square_norm=float(facts["sum_square_norm"]),
            )

    def sum(self) -> Float[Tensor, " d_model"]:
        """Sum of all rows, float64."""
        with opened(self.path) as file:
            return torch.from_numpy(file["sum"][...])

    def read_into(self, rows: Float[Tensor, "row d_model"], start: int) -> None:
        """Fill a contiguous tensor of the stored dtype with the rows from ``start`` on.

        Raises InputError if the file ends before.
        """
        words = rows.view(torch.uint8).numpy().data.cast("B")
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start * self.d_model * rows.dtype.itemsize)
                n_read = file.readinto(words)
        except OSError as error:
            raise damaged(self.path, error.strerror or str(error)) from None
        if n_read != len(words):
            raise damaged(self.path, "it is too short")


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read. Raises InputError, naming it, if it is missing, or for what is wrong with it inside."""
    if not path.is_file():
        raise InputError(f"no shard {path}", hint="run `circuit collect` again with --force")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def damaged(path: Path, reason: str) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(f"{path} is damaged: {reason}", hint="run `circuit collect` again with --force")
