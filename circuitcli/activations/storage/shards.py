"""One HDF5 file for each hook point and shard, beside one for the tokens of the shard (`token_shards`).

    ROOT/<hook>/00017.h5    activations (rows, d_model) little-endian float32, float16, or bfloat16 as uint16 words;
                            attributes as in `Header`, other data sets as in `Summary`

Files are written as ``*.partial`` and renamed (`writing`). All hook points have the same rows in the same order. Rows
lie uncompressed in one piece, so that plain file operations read and write them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from xxhash import xxh3_128_digest

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

FORMAT_VERSION = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FILE_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
ROWS = "activations"
DIGEST_BYTES = 16


def hook_path(root: Path, hook: HookPoint, index: int) -> Path:
    """Where one hook point's rows of a shard are."""
    return root / str(hook) / f"{index:05d}.h5"


def digest(content: bytes | memoryview) -> UInt8[np.ndarray, " 16"]:
    """XXH3, 128 bits: finds damage at the speed of memory, where SHA-256 would cost a tenth of the model's own time."""
    return np.frombuffer(xxh3_128_digest(content), np.uint8)


@dataclass(frozen=True)
class Header:
    """The attributes of a shard's file; ``fingerprint`` belongs to the settings that made it, ``first_row`` is its
    first row's number in the whole cache."""

    hook: str
    dtype: str
    n_rows: int
    d_model: int
    first_row: int = 0
    fingerprint: str = ""
    format: int = FORMAT_VERSION

    @classmethod
    def read(cls, file: h5py.File) -> "Header":
        """That of an open file. Raises KeyError if it has none."""
        found = {field.name: _content(h5py.h5a.open(file.id, field.name.encode())).item() for field in fields(cls)}
        texts = {name: value.decode() for name, value in found.items() if isinstance(value, bytes)}
        return cls(**found | texts)


@dataclass(frozen=True)
class Summary:
    """What a shard's file tells about its rows.

    ``pieces`` are the numbers of rows of the pieces in which they were written, ``norms`` the sums of the rows' norms
    and squared norms; ``digest`` is over the rest and the header but for its fingerprint.
    """

    pieces: Int64[np.ndarray, " piece"]
    piece_digests: UInt8[np.ndarray, "piece 16"]
    sum: Float64[np.ndarray, " d_model"]
    norms: Float64[np.ndarray, " 2"]
    digest: UInt8[np.ndarray, " 16"]

    @classmethod
    def read(cls, file: h5py.File) -> "Summary":
        """That of an open file. Raises KeyError if it has none."""
        return cls(*(_content(h5py.h5d.open(file.id, field.name.encode())) for field in fields(cls)))

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def digest_with(self, header: Header) -> UInt8[np.ndarray, " 16"]:
        """What ``digest`` is if nothing else was changed."""
        # The same rows are the same whatever settings made them.
        facts = json.dumps(asdict(replace(header, fingerprint="")), sort_keys=True).encode()
        parts = (part.tobytes() for name, part in self.parts().items() if name != "digest")
        return digest(b"".join([facts, *parts]))


@dataclass(frozen=True)
class RowsShard:
    """One hook point's rows of one shard, ready to be read; ``offset`` is where they begin in the file."""

    path: Path
    offset: int
    header: Header
    summary: Summary

    @classmethod
    def open(cls, path: Path) -> "RowsShard":
        """Read everything but the rows. Raises InputError, naming the file, if it is missing or damaged."""
        with opened(path) as file:
            if not h5py.h5a.exists(file.id, b"format") or file.attrs["format"] != FORMAT_VERSION:
                raise InputError(f"{path} was written by another version of circuit", hint=_AGAIN)
            header, summary = Header.read(file), Summary.read(file)
            if not np.array_equal(summary.digest, summary.digest_with(header)):
                raise damaged(path, "its header is not what was written")
            rows = h5py.h5d.open(file.id, ROWS.encode())
            if rows.shape != (header.n_rows, header.d_model) or rows.dtype != FILE_DTYPES[header.dtype]:
                raise damaged(path, "its rows are not as its header says")
            return cls(path, int(rows.get_offset()), header, summary)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.header.n_rows

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return self.header.d_model

    @property
    def digest(self) -> str:
        """Digest of the rows and of what is told about them."""
        return "xxh3:" + self.summary.digest.tobytes().hex()

    @property
    def sum_norm(self) -> float:
        """Sum of the norms of the rows."""
        return float(self.summary.norms[0])

    @property
    def sum_square_norm(self) -> float:
        """Sum of the squared norms of the rows."""
        return float(self.summary.norms[1])

    def sum(self) -> Float[Tensor, " d_model"]:
        """Sum of all rows, float64."""
        return torch.from_numpy(self.summary.sum)

    def read_into(self, rows: Float[Tensor, "row d_model"], start: int) -> None:
        """Fill a contiguous tensor of the stored dtype with the rows from ``start`` on.

        Raises InputError if the file ends before.
        """
        self._read(rows.view(torch.uint8).numpy().data.cast("B"), start * self._row_bytes)

    def verify(self) -> None:
        """Read all rows. Raises InputError, naming the first rows that are not what was written."""
        edges = [0, *self.summary.pieces.cumsum().tolist()]
        for piece, (first, last) in enumerate(pairwise(edges)):
            words = memoryview(bytearray((last - first) * self._row_bytes))
            self._read(words, first * self._row_bytes)
            if not np.array_equal(digest(words), self.summary.piece_digests[piece]):
                raise damaged(self.path, f"rows {first} to {last} are not what was written")

    @property
    def _row_bytes(self) -> int:
        return self.d_model * DTYPES[self.header.dtype].itemsize

    def _read(self, words: memoryview, at: int) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + at)
                n_read = file.readinto(words)
        except OSError as error:
            raise damaged(self.path, error.strerror or str(error)) from None
        if n_read != len(words):
            raise damaged(self.path, "it is too short")


def _content(stored: Any) -> np.ndarray:
    """All of a data set or attribute of HDF5's inner interface, which is several times as fast as its outer one."""
    content = np.empty(stored.shape, stored.dtype)
    if isinstance(stored, h5py.h5d.DatasetID):
        stored.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
    else:
        stored.read(content)
    return content


_AGAIN = "run `circuit collect` again with --force"
VERIFY = "`circuit collect --verify` finds all that is damaged, and `circuit collect` then makes only that again"


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read. Raises InputError, naming it, if it is missing, or for what is wrong with it inside."""
    if not path.is_file():
        raise InputError(f"no shard {path}", hint=VERIFY)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def damaged(path: Path, reason: str) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(f"{path} is damaged: {reason}", hint=VERIFY)
