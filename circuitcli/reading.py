"""JSON, JSON lines and TOML from outside: every way in which such a text can be bad is told apart here.

What is refused, by InputError unless the caller names another CircuitError (SettingsError for files of settings):

* a path that is none (NUL, ``~nobody``, bytes that are no UTF-8), a missing file, one that may not be read, a folder,
  a FIFO or a device, which might never end, and a file or a line of more bytes than its use can need;
* bytes that are no UTF-8, and halves of surrogate pairs, which only ``\\ud800`` in JSON can bring;
* syntax errors, nesting deeper than any real file has (Python's own parsers fail on it in their way);
* numbers past 64 bits, whole numbers of thousands of digits, and, unless ``finite`` is False, NaN and infinities;
* another type at the top than the caller needs.

Messages name the file and, in JSON lines, the line. `read_object(path)` is what most callers want; `parse_object` and
`parse_json` take a text that was read already; `json_lines` and `text_lines` take large files, a line at a time;
`as_path` makes a path of what a user typed; `whole_number` reads a number of ASCII digits.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from circuitcli.errors import CircuitError, InputError

# More than any configuration, manifest or graph head has; features and graphs come in lines.
FILE_BYTES = 64 * 2**20
LINE_BYTES = 64 * 2**20
# Python's own functions recurse over what was read, with a stack of 1,000.
DEEPEST = 64
# What has a place in int64 and in uint64.
SMALLEST, LARGEST = -(2**63), 2**64 - 1

# What only a text has that may hold something bad; the values of others need no look.
_SUSPECT = re.compile(r"\\u[dD]|[0-9]{19}|[eE]\+?[0-9]{3}|NaN|Infinity|\binf\b|\bnan\b")
_DIGITS = re.compile(r"[0-9]{1,18}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Pipes that a shell opened for this process: `circuit render <(jq ... graph.jsonl)`.
_OPEN_PIPES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


@dataclass(frozen=True)
class Refusal:
    """How bad input of one kind is refused: by which error, with which hint."""

    hint: str = ""
    error: type[CircuitError] = InputError

    def __call__(self, message: str) -> CircuitError:
        """The error, to be raised."""
        return self.error(message, hint=self.hint)


def as_path(text: str | os.PathLike[str], *, hint: str = "", error: type[CircuitError] = InputError) -> Path:
    """The path that a user typed, ``~`` expanded. Raises ``error`` for what can name no file."""
    refusal, written = Refusal(hint, error), os.fspath(text)
    if "\0" in written:
        raise refusal(f"'{written}' is not a path: it contains a NUL character")
    if not is_text(written):
        raise refusal(f"'{written}' is not a path: it is not UTF-8")
    try:
        # Of a Path the ./ before ~ is gone.
        return Path(written).expanduser() if written.startswith("~") else Path(written)
    except RuntimeError:
        raise refusal(f"'{written}' is not a path: there is no such user; begin a name with ./~") from None


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    return text.isascii() or _SURROGATE.search(text) is None


def whole_characters(text: str) -> str:
    """The text without the halves of characters that JSON can spell and no tokenizer takes."""
    return text if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def whole_number(text: str) -> int | None:
    """The number that 1 to 18 ASCII digits write; None for anything else, such as ``²``, ``٣``, ``+1`` or ``1_0``."""
    return int(text) if _DIGITS.fullmatch(text) else None


def read_bytes(
    path: str | Path, *, limit_bytes: int = FILE_BYTES, hint: str = "", error: type[CircuitError] = InputError
) -> bytes:
    """All of a regular file, or of a pipe that the shell opened, as of ``<(...)``.

    Raises ``error`` if there is none, or if it has more than ``limit_bytes``.
    """
    refusal = Refusal(hint, error)
    with _opened(path, refusal) as stream:
        content = _from(stream.read, limit_bytes + 1, path, refusal)
    if len(content) > limit_bytes:
        raise refusal(f"{path} has more than {limit_bytes:,} bytes")
    return content


def read_text(
    path: str | Path, *, limit_bytes: int = FILE_BYTES, hint: str = "", error: type[CircuitError] = InputError
) -> str:
    """The UTF-8 text of a regular file, a byte-order mark taken off. Raises ``error`` as `read_bytes` does."""
    return _decoded(read_bytes(path, limit_bytes=limit_bytes, hint=hint, error=error), str(path), Refusal(hint, error))


def text_lines(
    path: str | Path, *, limit_bytes: int = LINE_BYTES, hint: str = "", error: type[CircuitError] = InputError
) -> Iterator[tuple[str, str]]:
    """Place ("FILE line 3") and text of each line that is not blank; the file is read as they are asked for.

    Raises ``error`` as `read_text` does, and for a line of more than ``limit_bytes``.
    """
    with _opened(path, Refusal(hint, error)) as stream:
        yield from stream_lines(stream, name=str(path), limit_bytes=limit_bytes, hint=hint, error=error)


def stream_lines(
    stream: BinaryIO,
    *,
    name: str,
    limit_bytes: int = LINE_BYTES,
    hint: str = "",
    error: type[CircuitError] = InputError,
) -> Iterator[tuple[str, str]]:
    """As `text_lines`, of an open stream such as ``sys.stdin.buffer``."""
    refusal, number = Refusal(hint, error), 0
    while line := _from(stream.readline, limit_bytes + 1, name, refusal):
        number += 1
        place = f"{name} line {number}"
        if len(line) > limit_bytes:
            raise refusal(f"{place} has more than {limit_bytes:,} bytes")
        if line.strip():
            yield place, _decoded(line, place, refusal).removesuffix("\n")


def parse_json(
    text: str | bytes,
    *,
    name: str,
    finite: bool = True,
    hint: str = "",
    error: type[CircuitError] = InputError,
) -> Any:
    """The value that a JSON text holds. ``name`` says in messages where the text is from.

    finite: whether NaN and infinities are refused. Raises ``error`` for what this module's head names.
    """
    refusal = Refusal(hint, error)
    written = _decoded(text, name, refusal) if isinstance(text, bytes) else text
    try:
        value = json.loads(written)
    except (ValueError, RecursionError) as problem:
        raise refusal(not_json(name, problem)) from None
    if _SUSPECT.search(written) or written.count("[") + written.count("{") > DEEPEST or not is_text(written):
        _check(value, name=name, finite=finite, refusal=refusal)
    return value


def not_json(name: str, problem: ValueError | RecursionError) -> str:
    """What is to be said of a text that Python's parser refuses."""
    if isinstance(problem, json.JSONDecodeError):
        return f"{name} is not JSON: {problem.msg}{_at(problem)}"
    why = "is nested too deep" if isinstance(problem, RecursionError) else "contains a number with thousands of digits"
    return f"{name} cannot be read as JSON: it {why}"


def parse_object(
    text: str | bytes, *, name: str, finite: bool = True, hint: str = "", error: type[CircuitError] = InputError
) -> dict[str, Any]:
    """The JSON object that a text holds. Raises ``error`` as `parse_json` does, and for a list, a number, a text."""
    return _object(parse_json(text, name=name, finite=finite, hint=hint, error=error), name, Refusal(hint, error))


def read_json(
    path: str | Path,
    *,
    finite: bool = True,
    limit_bytes: int = FILE_BYTES,
    hint: str = "",
    error: type[CircuitError] = InputError,
) -> Any:
    """The value in a JSON file. Raises ``error`` as `read_text` and `parse_json` do."""
    text = read_text(path, limit_bytes=limit_bytes, hint=hint, error=error)
    return parse_json(text, name=str(path), finite=finite, hint=hint, error=error)


def read_object(
    path: str | Path,
    *,
    finite: bool = True,
    limit_bytes: int = FILE_BYTES,
    hint: str = "",
    error: type[CircuitError] = InputError,
) -> dict[str, Any]:
    """The object in a JSON file. Raises ``error`` as `read_text` and `parse_object` do."""
    content = read_json(path, finite=finite, limit_bytes=limit_bytes, hint=hint, error=error)
    return _object(content, str(path), Refusal(hint, error))


def json_lines(
    path: str | Path,
    *,
    finite: bool = True,
    limit_bytes: int = LINE_BYTES,
    hint: str = "",
    error: type[CircuitError] = InputError,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("FILE line 3") and object of each line of a JSON-lines file, read as they are asked for.

    Raises ``error`` as `text_lines` and `parse_object` do, when the bad line is reached.
    """
    for place, line in text_lines(path, limit_bytes=limit_bytes, hint=hint, error=error):
        yield place, parse_object(line, name=place, finite=finite, hint=hint, error=error)


def parse_toml(text: str, *, name: str, hint: str = "", error: type[CircuitError] = InputError) -> dict[str, Any]:
    """The tables of a TOML text; NaN and infinities are values of TOML. Raises ``error`` as `parse_json` does."""
    refusal = Refusal(hint, error)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise refusal(f"{name} is not TOML: {problem}") from None
    except RecursionError:
        raise refusal(f"{name} cannot be read as TOML: it is nested too deep") from None
    except ValueError as problem:
        said = "a number with thousands of digits" if "digits" in str(problem) else "a date or time that does not exist"
        raise refusal(f"{name} cannot be read as TOML: it contains {said}") from None
    _check(value, name=name, finite=False, refusal=refusal)
    return value


def read_toml(
    path: str | Path, *, limit_bytes: int = 2**18, hint: str = "", error: type[CircuitError] = InputError
) -> dict[str, Any]:
    """The tables in a TOML file. Raises ``error`` as `read_text` and `parse_toml` do."""
    text = read_text(path, limit_bytes=limit_bytes, hint=hint, error=error)
    return parse_toml(text, name=str(path), hint=hint, error=error)


def _opened(path: str | Path, refusal: Refusal) -> BinaryIO:
    """A regular file, open for reading, or a pipe that the shell has opened for this process."""
    try:
        # A FIFO without a writer would never open.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise refusal(f"cannot read {path}: {problem.strerror}") from None
    except ValueError:
        raise refusal(f"cannot read {path}: it is not a valid path") from None
    mode = os.fstat(number).st_mode
    is_pipe = str(path).startswith(_OPEN_PIPES) and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))
    if not stat.S_ISREG(mode) and not is_pipe:
        os.close(number)
        raise refusal(f"cannot read {path}: it is {_kind(mode)}, not a file")
    os.set_blocking(number, True)
    return os.fdopen(number, "rb")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def _from(read: Callable[[int], bytes], n_bytes: int, path: str | Path, refusal: Refusal) -> bytes:
    try:
        return read(n_bytes)
    except OSError as problem:
        raise refusal(f"cannot read {path}: {problem.strerror or problem}") from None


def _decoded(content: bytes, name: str, refusal: Refusal) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise refusal(f"{name} is not UTF-8 text: byte {problem.start}") from None


def _at(problem: json.JSONDecodeError) -> str:
    line = f"line {problem.lineno}, " if problem.doc.count("\n", 0, len(problem.doc.rstrip())) else ""
    return f" ({line}column {problem.colno})"


def _object(content: Any, name: str, refusal: Refusal) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise refusal(f"{name} holds {_type(content)}, not a JSON object")
    return content


def _type(content: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(content), "null")


def _check(value: Any, *, name: str, finite: bool, refusal: Refusal) -> None:
    """Refuse nesting, numbers and texts that nothing behind this could take; level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        for item in level:
            _check_scalar(item, name=name, finite=finite, refusal=refusal)
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise refusal(f"{name} is nested more than {DEEPEST} deep")


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return (*item.keys(), *item.values())
    return item if isinstance(item, list) else ()


def _check_scalar(item: Any, *, name: str, finite: bool, refusal: Refusal) -> None:
    if isinstance(item, str) and not is_text(item):
        raise refusal(f"{name} contains half of a surrogate pair, which is not valid text")
    if isinstance(item, int) and not SMALLEST <= item <= LARGEST:
        raise refusal(f"{name} contains a number of more than 64 bits")
    if finite and isinstance(item, float) and not isfinite(item):
        raise refusal(f"{name} contains a number that is not finite")
