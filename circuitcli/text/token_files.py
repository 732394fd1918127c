"""Token shards: ``.npy`` and ``.safetensors`` files of token ids, read where they lie, a piece at a time.

An array of one dimension is a stream: its documents are what lies between the tokenizer's EOS, BOS and padding, in
pieces of at most ``PIECE_TOKENS``. Of an array of two dimensions every row is a document. Nothing in a file is run.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from circuitcli.errors import InputError, first_line
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.text.token_ids import HINT, Ids, document_ids

SUFFIXES = (".npy", ".safetensors")
PIECE_TOKENS = 65_536
_NAMES = ("tokens", "input_ids")
_SCANNED_TOKENS = 2**20


def token_shards(folder: Path) -> list[Path]:
    """The token shards that lie directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_shard(path) and path.is_file())


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a token shard."""
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def shard_documents(path: Path, *, field: str | None, vocabulary: Vocabulary, start: int = 0) -> Iterator[Ids]:
    """The documents of a shard, or of a folder's shards one after the other, from number ``start`` on.

    field: the tensor of a ``.safetensors`` file; by default tokens, else input_ids, else the only one.
    Raises InputError for what is no array of token ids, and for ids that the model does not know.
    """
    for file in token_shards(path) if path.is_dir() else [path]:
        array = _array(file, field)
        is_stream = len(array.shape) == 1
        ranges = (
            _spans(array, vocabulary.separators) if is_stream else ((row, row + 1) for row in range(array.shape[0]))
        )
        for first, last in ranges:
            if start:
                start -= 1
            elif is_stream:
                yield document_ids(array[first:last], vocabulary, place=str(file), first=first)
            else:
                yield document_ids(array[first:last][0], vocabulary, place=f"{file} row {first}")


def _spans(array: Any, separators: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where the pieces of documents of a stream begin and end."""
    n_ids, begin = array.shape[0], 0
    for at in range(0, n_ids, _SCANNED_TOKENS):
        scanned = array[at : at + _SCANNED_TOKENS]
        for end in (at + np.flatnonzero(np.isin(scanned, separators))).tolist():
            yield from _pieces(begin, end)
            begin = end + 1
        # What is here is a whole piece, wherever the document ends.
        while begin + PIECE_TOKENS <= at + len(scanned):
            yield begin, begin + PIECE_TOKENS
            begin += PIECE_TOKENS
    yield from _pieces(begin, n_ids)


def _pieces(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(begin, end, PIECE_TOKENS):
        yield first, min(first + PIECE_TOKENS, end)


class _Tensor:
    """A tensor of a ``.safetensors`` file; slices of it are read when they are asked for."""

    def __init__(self, part: Any) -> None:
        self.shape = tuple(part.get_shape())
        # I32, U16: what NumPy calls int32 and uint16.
        self.dtype = part.get_dtype()
        self._part = part

    def __getitem__(self, chosen: slice) -> Ids:
        return np.asarray(self._part[chosen.start : min(chosen.stop, self.shape[0])])


def _array(path: Path, field: str | None) -> Any:
    """Something with a shape that gives its slices. Raises InputError unless it holds integers in one or two axes."""
    try:
        array = _tensor(path, field) if path.suffix == ".safetensors" else np.lib.format.open_memmap(path, mode="r")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions") from None
    except Exception as error:
        # NumPy takes headers for Python and fails on bad ones in all ways in which Python does.
        message = f"{path} cannot be read as token ids: {first_line(error)}"
        raise InputError(message, hint="write it with numpy.save or safetensors; pickled objects are refused") from None
    kind = array.dtype if isinstance(array, _Tensor) else array.dtype.name
    if not str(kind).lower().startswith(("i", "u")):
        raise InputError(f"{path} holds {kind}, but token ids are integers", hint=HINT)
    if len(array.shape) not in (1, 2):
        raise InputError(f"{path} has shape {tuple(array.shape)}, {len(array.shape)} axes", hint=HINT)
    return array


def _tensor(path: Path, field: str | None) -> _Tensor:
    file = safe_open(path, framework="numpy")
    names = list(file.keys())
    wanted = [field] if field else [*_NAMES, *(names if len(names) == 1 else ())]
    name = next((name for name in wanted if name in names), None)
    if name is None:
        hint = f"it has {', '.join(sorted(names)) or 'none'}: choose with --field NAME"
        raise InputError(f"{path} has no tensor '{wanted[0]}'", hint=hint)
    return _Tensor(file.get_slice(name))
