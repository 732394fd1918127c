"""Data sets as the package ``datasets`` knows them: on the hub, streamed, or in a folder on this machine."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from circuitcli.errors import CircuitError, InputError, ToolError, first_line
from circuitcli.models.hub import hub_answers, refusal
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.reading import as_path
from circuitcli.text.fields import document_of
from circuitcli.text.token_ids import Document

PREFIX = "hf:"
_SPLITS = ("train", "validation", "valid", "dev", "test")
# Files of a folder that `datasets` wrote with save_to_disk: a data set, or one for each split.
_SAVED = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class DataSet:
    """``hf:NAME``, ``hf:NAME:CONFIG``, ``hf:NAME:test`` or ``hf:NAME:CONFIG:SPLIT``; NAME is on the hub or a folder."""

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, source: str) -> "DataSet":
        """The data set that ``source`` names. Raises InputError if it names none."""
        name, *rest = source.removeprefix(PREFIX).split(":")
        if not name or len(rest) > 2:
            hint = "write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"
            raise InputError(f"'{source}' is not a data set", hint=hint)
        if len(rest) == 1 and rest[0] in _SPLITS:
            return cls(name, split=rest[0])
        config, split = [*rest, "", ""][:2]
        return cls(name, config or None, split or cls.split)

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine; None for one on the hub."""
        path = as_path(self.name)
        return path if path.is_dir() else None


def is_saved(folder: Path) -> bool:
    """Whether a folder is a data set that was saved to disk."""
    return any((folder / name).is_file() for name in _SAVED)


def row_documents(
    wanted: DataSet, *, field: str | None, vocabulary: Vocabulary | None, start: int = 0
) -> Iterator[Document]:
    """The documents of a data set, a text or a list of token ids in each row, from row ``start`` on.

    Raises InputError for a data set, split or field that is not there, ToolError without ``datasets`` or the network.
    """
    library = load_library(f"text from a data set ({PREFIX}{wanted.name})")
    if wanted.folder is None and not hub_answers():
        raise _offline(wanted)
    try:
        for number, row in enumerate(_rows(library, wanted, start), start):
            yield document_of(row, f"{PREFIX}{wanted.name} row {number}", field=field, vocabulary=vocabulary)
    except (InputError, ToolError):
        raise
    except Exception as error:
        raise _explained(wanted, error) from error


def load_library(purpose: str) -> Any:
    """The package ``datasets``. Raises ToolError if it is not there."""
    try:
        return import_module("datasets")
    except ImportError:
        raise ToolError(f"{purpose} needs the package 'datasets'", hint="pip install datasets") from None


def _rows(library: Any, wanted: DataSet, start: int) -> Any:
    if wanted.folder is None or not is_saved(wanted.folder):
        location = str(wanted.folder or wanted.name)
        return library.load_dataset(location, wanted.config, split=wanted.split, streaming=True).skip(start)
    saved = library.load_from_disk(str(wanted.folder))
    if isinstance(saved, dict):
        if wanted.split not in saved:
            raise ValueError(f"it has no split '{wanted.split}', but {', '.join(saved)}")
        saved = saved[wanted.split]
    # Whoever saved it may have asked for tensors.
    return saved.with_format(None).skip(start) if start < len(saved) else ()


def files_of(folder: Path) -> Iterator[Path]:
    """All files of a data set's folder in a fixed order, without hidden ones and what `datasets` keeps for itself."""
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory) / name for name in sorted(files) if not name.startswith((".", "cache-")))


def states(folder: Path, files: Iterable[Path]) -> Iterator[str]:
    """Names below the folder, sizes and times of files."""
    for path in files:
        status = path.stat()
        yield f"{path.relative_to(folder).as_posix()} {status.st_size} {status.st_mtime_ns}"


def _offline(wanted: DataSet) -> ToolError:
    hint = "give a file or a folder, or --text builtin:python, which needs no network"
    return ToolError(f"cannot reach the hub for {PREFIX}{wanted.name}", hint=hint)


def _explained(wanted: DataSet, error: Exception) -> CircuitError:
    """What the library says when the data set, its configuration or split is not there; else the network."""
    told = None if wanted.folder else refusal(error, repository=wanted.name, kind="data set")
    if told is not None:
        return told
    is_known = isinstance(error, ValueError | FileNotFoundError | RuntimeError) and not isinstance(
        error, ConnectionError
    )
    if wanted.folder is None and not is_known:
        return _offline(wanted)
    hint = "write hf:NAME:CONFIG:SPLIT; see the data set's page for its names"
    return InputError(f"cannot read {PREFIX}{wanted.name}: {first_line(error)}", hint=hint)
