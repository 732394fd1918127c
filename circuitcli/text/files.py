"""Text of this machine: a file, a folder, or ``builtin:python``, the running interpreter's own standard library.

The standard library's documentation and source are real text that is on every machine. Files of data (`data_files`)
have a document in each record, which may be token ids or messages instead of a text. In a folder, where configurations
lie among them, a .json or a table whose first record has no document is a text like others.
"""

import os
import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TextIO

from circuitcli.errors import InputError
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.reading import as_path
from circuitcli.text.data_files import is_data, is_parquet, records
from circuitcli.text.fields import document_of
from circuitcli.text.token_ids import Document

BUILTIN = "builtin:python"

# Raised when the same source yields other documents than before, so that cached stages are not reused.
FORMAT_VERSION = 1

# Longer plain text comes in pieces of at most this many characters.
PIECE_CHARACTERS = 65_536

_HEAD_BYTES = 8_192
_SHUFFLE_SEED = 20_240_328

# Tests, vendored tools, and directories or files that are generated tables rather than text.
_EXCLUDED_PARTS = {
    "__phello__",
    "__pycache__",
    "dist-packages",
    "encodings",
    "idlelib",
    "idle_test",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_EXCLUDED_FILES = {"entities.py", "_aix_support.py", "sitecustomize.py", "usercustomize.py"}
_EXCLUDED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-")


def documents(
    source: str, *, field: str | None = None, vocabulary: Vocabulary | None = None, start: int = 0
) -> Iterator[Document]:
    """Documents of the source from number ``start`` on.

    field: which field of a record is the document. Memory stays bounded: a plain text file of more than
    ``PIECE_CHARACTERS`` comes in pieces, split at blank lines, that add up to the file.
    Raises InputError for a missing, broken or undecodable source.
    """
    if source == BUILTIN:
        return _standard_library(start)
    path = existing(source)
    documents_of = partial(_file, field=field, vocabulary=vocabulary)
    if path.is_dir():
        return _folder(path, documents_of, start=start)
    if not is_parquet(path) and _is_binary(path):
        hint = "a text is a UTF-8 file, a .jsonl file, or a folder of them"
        raise InputError(f"{path} is not text", hint=hint)
    return documents_of(path, start=start)


def existing(source: str) -> Path:
    """The file or folder of that name. Raises InputError if there is none."""
    if source == "-":
        raise InputError("only `circuit collect` reads text from a pipe", hint="give a file: --text FILE")
    hint = f"give a file, a folder, hf:NAME, or {BUILTIN} for the standard library of this Python"
    path = as_path(source, hint=hint)
    if not source or not path.exists():
        raise InputError(f"there is no text at '{source}'", hint=hint)
    if not path.is_dir() and not path.is_file():
        # Nobody knows whether it ends, and it could not be read again where a killed collection goes on.
        hint = "read a pipe as --text -, for example `zcat FILE | circuit collect --text -`"
        raise InputError(f"{path} is neither a file nor a folder", hint=hint)
    return path


def unreadable(path: Path, error: OSError) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions")


def _raise_unreadable(error: OSError) -> None:
    raise unreadable(Path(error.filename), error)


def _standard_library(start: int) -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    topics = _topics()
    names = sorted([*topics, *_library_files(library)])
    random.Random(_SHUFFLE_SEED).shuffle(names)
    for name in names[start:]:
        yield topics[name] if name in topics else (library / name).read_text("utf-8", errors="replace")


def _topics() -> dict[str, str]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        return {}
    return {f"topic:{name}": text for name, text in topics.items()}


def _library_files(library: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if not _is_excluded(name)]
        names += [
            (Path(folder) / name).relative_to(library).as_posix()
            for name in files
            if name.endswith(".py") and not _is_excluded(name) and (Path(folder) / name).stat().st_size
        ]
    return names


def _is_excluded(name: str) -> bool:
    return name in _EXCLUDED_PARTS or name in _EXCLUDED_FILES or name.startswith(_EXCLUDED_PREFIXES)


def _folder(root: Path, documents_of: Callable[..., Iterator[Document]], *, start: int) -> Iterator[Document]:
    for path in text_files(root):
        size = path.stat().st_size
        if start and not is_data(path) and size <= PIECE_CHARACTERS:
            # At most one character per byte: a file this short is one document, an empty one is none.
            start -= min(size, 1)
            continue
        for document in documents_of(path, start=0, in_folder=True):
            if not start:
                yield document
            start -= min(start, 1)


def text_files(root: Path) -> Iterator[Path]:
    """Text files below the folder, hidden and binary ones left out, sorted folder by folder."""
    for folder, folders, files in os.walk(root, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and (is_parquet(path) or not _is_binary(path)):
                yield path


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return b"\0" in stream.read(_HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None


def _file(
    path: Path, *, field: str | None, vocabulary: Vocabulary | None, start: int, in_folder: bool = False
) -> Iterator[Document]:
    try:
        if is_data(path) and not (in_folder and _is_mere_text(path, field, vocabulary)):
            for place, record in records(path, start=start):
                yield document_of(record, place, field=field, vocabulary=vocabulary)
        else:
            # Without newline translation, so that the pieces add up to the file.
            with path.open(encoding="utf-8-sig", newline="") as stream:
                yield from islice(_pieces(stream), start, None)
    except UnicodeDecodeError as error:
        hint = f"convert it to UTF-8, for example `iconv -f latin1 -t utf-8 {path.name}`"
        raise InputError(f"{path} is not UTF-8 text: {error.reason}", hint=hint) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _is_mere_text(path: Path, field: str | None, vocabulary: Vocabulary | None) -> bool:
    """Whether a .json file or a table begins with a record that is no document; if a field is named, it must be."""
    if field is not None or path.suffix.lower() not in (".json", ".csv", ".tsv"):
        return False
    try:
        for place, record in records(path):
            document_of(record, place, field=None, vocabulary=vocabulary)
            return False
    except InputError:
        return True
    return False


def _pieces(stream: TextIO) -> Iterator[str]:
    """The stream cut at its last blank line, else line, else character before ``PIECE_CHARACTERS``."""
    rest = ""
    while block := stream.read(PIECE_CHARACTERS):
        rest += block
        while len(rest) > PIECE_CHARACTERS:
            cut = _cut(rest)
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _cut(text: str) -> int:
    for separator in ("\n\n", "\r\n\r\n", "\n", " "):
        at = text.rfind(separator, PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
        if at >= 0:
            return at + len(separator)
    return PIECE_CHARACTERS
