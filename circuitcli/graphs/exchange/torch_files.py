"""Files of ``torch.save``, read without torch and without running anything that is in them.

Such a file is a pickle, which may call any function by name. Here names stand for the few that make tensors, for plain
containers, and, of the programs whose graphs are read, for values that hold what the file says and do nothing; all
else is refused. Tensors are views of the file, so that a large one takes no memory.
"""

import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitcli.errors import InputError

# Of a pickle without its tensors: more than any graph has.
_MOST_PICKLE = 2**28
_HINT = "a graph of circuit-tracer, feature-circuits or EAP-IG, as torch.save wrote it, can be read"
# Programs whose own classes hold parts of graphs.
_PROGRAMS = ("circuit_tracer", "transformer_lens", "activation_utils", "eap", "nnsight")
_BFLOAT16 = "bfloat16"
_STORAGES: dict[str, str] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("float", "double", "half", "long", "int"),
)


@dataclass(frozen=True)
class Sparse:
    """A sparse tensor: where its values are, (axis, value), and what they are; one place may have several."""

    indices: NDArray[Any]
    values: NDArray[Any]
    shape: tuple[int, ...]


class Inert:
    """What a file says of a value of another program's class: arguments and fields; it does nothing."""

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> "Inert":
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        pass


def read(path: Path) -> Any:
    """What a file holds. Raises InputError for a damaged file, and for one that asks for more than tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).content()
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="copy it again") from None
    except Exception as error:
        # A pickle that is none can fail in any of the ways that Python has.
        raise InputError(
            f"{path} is damaged: {type(error).__name__}: {str(error)[:120]}", hint="copy it again"
        ) from None


class _Reader:
    """One file, while it is read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.entries = path, {entry.filename: entry for entry in archive.infolist()}
        self.archive = archive

    def content(self) -> Any:
        pickles = [name for name in self.entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"{self.path} is not a file of torch.save", hint=_HINT)
        self.prefix = pickles[0].removesuffix("data.pkl")
        order = self.entries.get(f"{self.prefix}byteorder")
        if order is not None and self.archive.read(order) != b"little":
            raise InputError(f"{self.path} was written by a machine of another byte order", hint=_HINT)
        if self.entries[pickles[0]].file_size > _MOST_PICKLE:
            raise InputError(f"{self.path} has more than {_MOST_PICKLE:,} bytes without its tensors", hint=_HINT)
        with self.archive.open(pickles[0]) as stream:
            return _Unpickler(stream, self).load()

    def storage(self, kind: str, key: str, n: int) -> NDArray[Any]:
        """The numbers of a storage, in the file."""
        entry = self.entries[f"{self.prefix}data/{key}"]
        name = _STORAGES[kind]
        width = 2 if name == _BFLOAT16 else np.dtype(name).itemsize
        if entry.compress_type != zipfile.ZIP_STORED or n < 0 or n * width > entry.file_size:
            raise InputError(f"{self.path} is damaged: tensor {key[:20]} is shorter than it says", hint="copy it again")
        if n == 0:
            return np.zeros(0, dtype="<f4" if name == _BFLOAT16 else name)
        with self.path.open("rb") as stream:
            stream.seek(entry.header_offset + 26)
            lengths = stream.read(4)
        start = entry.header_offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
        stored = "<u2" if name == _BFLOAT16 else name
        found = np.memmap(self.path, dtype=stored, mode="r", offset=start, shape=(n,))
        return (found.astype("<u4") << 16).view("<f4") if name == _BFLOAT16 else found


class _Unpickler(pickle.Unpickler):
    """A pickle in which names stand for nothing but what is listed here."""

    def __init__(self, stream: Any, reader: _Reader) -> None:
        super().__init__(stream)
        self.reader = reader

    def find_class(self, module: str, name: str) -> Any:
        if (found := _KNOWN.get((module, name))) is not None:
            return found
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageKind(name)
        if module == "torch" and name in _DTYPES:
            return name
        if module.partition(".")[0] in _PROGRAMS:
            return type(name, (Inert,), {})
        raise InputError(
            f"{self.reader.path} is refused: it asks for {module[:60]}.{name[:60]}, which no graph needs", hint=_HINT
        )

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, n = pid
        return self.reader.storage(kind.name, str(key), int(n))


@dataclass(frozen=True)
class _StorageKind:
    name: str


def _tensor(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> NDArray[Any]:
    """A view of a storage. Raises ValueError where it would reach past its end."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        # A file may name a tensor for a storage: past the end of a view with a stride of 0 lies what is not its own.
        raise ValueError("a tensor has no storage")
    # Python's own numbers do not overflow.
    offset, size, stride = index(offset), tuple(map(index, size)), tuple(map(index, stride))
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0 or len(size) > 16:
        raise ValueError("a tensor has no shape")
    if 0 in size:
        return np.zeros(size, dtype=storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise ValueError("a tensor reaches past its storage")
    if np.prod([float(n) for n in size]) > max(len(storage), 1):
        raise ValueError("a tensor has more numbers than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides, writeable=False)


def _sparse(layout: str, data: tuple[Any, ...]) -> Sparse:
    """A sparse tensor of coordinates. Raises ValueError for another layout, and for places outside it."""
    indices, values, shape = data[:3]
    sizes = tuple(int(n) for n in shape)
    if layout != "torch.sparse_coo" or np.ndim(indices) != 2 or np.shape(indices) != (len(sizes), len(values)):
        raise ValueError("a sparse tensor that is not one of coordinates")
    places = np.asarray(indices)
    if places.size and (places.min() < 0 or (places >= np.array(sizes)[:, None]).any()):
        raise ValueError("a sparse tensor has values outside its shape")
    return Sparse(places, np.asarray(values), sizes)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _same(text: Any = "", *_: Any) -> Any:
    return text


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.serialization", "_get_layout"): _same,
    ("torch", "device"): _same,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
