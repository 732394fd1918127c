"""Text sources: the documents that models are run on, as an iterator of strings.

``builtin:python`` is the running interpreter's own standard library (documentation and source), which is
on every machine; else a file, a folder, or ``hf:NAME[:CONFIG][:SPLIT]``, streamed from the hub.
Documents are numbered from 0 in a fixed order, so that a reader can go on at any of them.
"""

import hashlib
import json
import os
import platform
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TextIO

from circuitcli.errors import InputError, ToolError, first_line
from circuitcli.models.hub import hub_answers

BUILTIN = "builtin:python"

# Raised when the same source yields other documents than before, so that cached stages are not reused.
FORMAT_VERSION = 1

# Longer plain text comes in pieces of at most this many characters.
PIECE_CHARACTERS = 65_536

# The hub's own client goes on trying for half a minute where there is no network.

_HEAD_BYTES = 8_192
# JSON can spell half a character, which no tokenizer takes.
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHUFFLE_SEED = 20_240_328
_SPLITS = ("train", "validation", "valid", "dev", "test")

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


def documents(source: str, *, field: str = "text", start: int = 0) -> Iterator[str]:
    """Documents of the source from number ``start`` on.

    field: which field of a JSON line or of a hub data set is the text. Memory stays bounded: a plain text
    file of more than ``PIECE_CHARACTERS`` comes in pieces, split at blank lines, that add up to the file.
    Raises InputError for a missing, broken or undecodable source, ToolError without the network or ``datasets``.
    """
    if source == BUILTIN:
        return _standard_library(start)
    if source.startswith("hf:"):
        return _hub(HubText.parse(source), field=field, start=start)
    path = _existing(source)
    if path.is_dir():
        return _folder(path, field=field, start=start)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder", hint="read a pipe as --text -")
    if _is_binary(path):
        hint = "a text is a UTF-8 file, a .jsonl file, or a folder of them"
        raise InputError(f"{path} is not text", hint=hint)
    return _file(path, field=field, start=start)


def source_digest(source: str, *, field: str = "text") -> str:
    """``sha256:...`` that identifies the text of a source.

    Covers a file's content; names, sizes and times of a folder's files; the Python version; a hub data
    set's name. The field counts where documents are made of fields.
    """
    if source == BUILTIN:
        return _sha256(f"{BUILTIN} {platform.python_version()} format {FORMAT_VERSION}")
    if source.startswith("hf:"):
        return _sha256(f"{source} {field}")
    path = _existing(source)
    if path.is_dir():
        return _sha256(field, *_folder_state(path))
    try:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _sha256(f"{content} {field}") if path.suffix == ".jsonl" else f"sha256:{content}"


def _sha256(*lines: str) -> str:
    return "sha256:" + hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not source or not path.exists():
        hint = f"give a file, a folder, hf:NAME, or {BUILTIN} for the standard library of this Python"
        raise InputError(f"there is no text at '{source}'", hint=hint)
    return path


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions")


def _raise_unreadable(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error)


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


def _folder(root: Path, *, field: str, start: int) -> Iterator[str]:
    for path in _text_files(root):
        size = path.stat().st_size
        if start and path.suffix != ".jsonl" and size <= PIECE_CHARACTERS:
            # At most one character per byte: a file this short is one document, an empty one is none.
            start -= min(size, 1)
            continue
        for document in _file(path, field=field, start=0):
            if not start:
                yield document
            start -= min(start, 1)


def _text_files(root: Path) -> Iterator[Path]:
    """Text files below the folder, hidden and binary ones left out, sorted folder by folder."""
    for folder, folders, files in os.walk(root, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and not _is_binary(path):
                yield path


def _folder_state(root: Path) -> Iterator[str]:
    for path in _text_files(root):
        status = path.stat()
        yield f"{path.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}"


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return b"\0" in stream.read(_HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None


def _file(path: Path, *, field: str, start: int) -> Iterator[str]:
    try:
        # Without newline translation, so that the pieces add up to the file.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix == ".jsonl":
                yield from _json_documents(stream, path, field=field, start=start)
            else:
                yield from islice(_pieces(stream), start, None)
    except UnicodeDecodeError as error:
        hint = f"convert it to UTF-8, for example `iconv -f latin1 -t utf-8 {path.name}`"
        raise InputError(f"{path} is not UTF-8 text: {error.reason}", hint=hint) from None
    except OSError as error:
        raise _unreadable(path, error) from None


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


def _json_documents(lines: Iterable[str], path: Path, *, field: str, start: int) -> Iterator[str]:
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for number, line in islice(filled, start, None):
        yield _json_text(line, f"{path} line {number}", field=field)


def _json_text(line: str, place: str, *, field: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}", hint="a .jsonl file has one JSON object a line") from None
    return _field(record, place, field=field)


def _field(record: object, place: str, *, field: str) -> str:
    if not isinstance(record, dict):
        raise InputError(f"{place} is no JSON object", hint=f'write {{"{field}": "..."}} on each line')
    text = record.get(field)
    if isinstance(text, str):
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    names = ", ".join(f"'{name}'" for name, value in record.items() if isinstance(value, str))
    raise InputError(
        f"{place} has no text in field '{field}'",
        hint=f"fields with text: {names or 'none'}; choose with --set data.field=NAME",
    )


@dataclass(frozen=True)
class HubText:
    """A data set on the hub: ``hf:NAME``, ``hf:NAME:CONFIG``, ``hf:NAME:test`` or ``hf:NAME:CONFIG:SPLIT``."""

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, source: str) -> "HubText":
        """The data set that ``source`` names. Raises InputError if it names none."""
        name, *rest = source.removeprefix("hf:").split(":")
        if not name or len(rest) > 2:
            hint = "write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"
            raise InputError(f"'{source}' names no data set", hint=hint)
        if len(rest) == 1 and rest[0] in _SPLITS:
            return cls(name, split=rest[0])
        config, split = [*rest, "", ""][:2]
        return cls(name, config or None, split or cls.split)


def _hub(wanted: HubText, *, field: str, start: int) -> Iterator[str]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError:
        message = f"text from the hub (hf:{wanted.name}) needs the package 'datasets'"
        raise ToolError(message, hint="pip install 'circuitcli[hf]'") from None
    if not hub_answers():
        raise _offline(wanted)
    try:
        rows = load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
        for number, row in enumerate(rows.skip(start), start):
            yield _field(row, f"hf:{wanted.name} row {number}", field=field)
    except (InputError, ToolError):
        raise
    except Exception as error:
        raise _hub_error(wanted, error) from error


def _offline(wanted: HubText) -> ToolError:
    hint = f"give a file or a folder, or --text {BUILTIN}, which needs no network"
    return ToolError(f"cannot reach the hub for hf:{wanted.name}", hint=hint)


def _hub_error(wanted: HubText, error: Exception) -> InputError | ToolError:
    """What the library says when the data set, its configuration or split is not there; else the network."""
    if isinstance(error, ConnectionError) or not isinstance(error, ValueError | FileNotFoundError | RuntimeError):
        return _offline(wanted)
    hint = "write hf:NAME:CONFIG:SPLIT; see the data set's page for its names"
    return InputError(f"cannot read hf:{wanted.name}: {first_line(error)}", hint=hint)
