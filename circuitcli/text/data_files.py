"""Records in files of data: JSON lines, JSON, tables with a header (.csv, .tsv) and Parquet.

They are read where they lie, a few at a time, however long the file is; one record of endless length is refused.
"""

import csv
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from circuitcli.errors import InputError, ToolError, first_line
from circuitcli.reading import not_json

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

# Of one line or record: more than any document has.
LONGEST_CHARACTERS = 2**26
_READ_CHARACTERS = 65_536
_ROWS_AT_ONCE = 64
_HINT = 'a .json file holds a list of objects such as {"text": "..."}, or of texts'
_BLANK = re.compile(r"[ \t\r\n]*")

Placed = tuple[str, object]


def is_data(path: Path) -> bool:
    """Whether a file's name is that of a file of records."""
    return path.suffix.lower() in SUFFIXES


def is_parquet(path: Path) -> bool:
    """Whether it is one that is no text."""
    return path.suffix.lower() == ".parquet"


def records(path: Path, *, start: int = 0) -> Iterator[Placed]:
    """Where each record stands, for people, and the record, from number ``start`` on.

    Raises InputError, naming the place, for what cannot be read; UnicodeDecodeError and OSError as files do.
    """
    suffix = path.suffix.lower()
    if is_parquet(path):
        yield from _parquet(path, start)
        return
    # Tables have line breaks inside of fields.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if suffix in _DELIMITERS:
            yield from islice(_table(stream, path, _DELIMITERS[suffix]), start, None)
        elif suffix == ".json":
            yield from islice(_values(stream, path), start, None)
        else:
            yield from _json_lines(stream, path, start)


def _lines(stream: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line. Raises InputError for one that does not end."""
    number = 0
    while line := stream.readline(LONGEST_CHARACTERS + 1):
        number += 1
        if len(line) > LONGEST_CHARACTERS:
            raise _endless(f"{path} line {number}")
        yield number, line


def _json_lines(stream: TextIO, path: Path, start: int) -> Iterator[Placed]:
    filled = ((number, line) for number, line in _lines(stream, path) if line.strip())
    for number, line in islice(filled, start, None):
        place = f"{path} line {number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(not_json(place, error), hint="a .jsonl file has one JSON object on each line") from None


def _table(stream: TextIO, path: Path, delimiter: str) -> Iterator[Placed]:
    """The rows below the header, by the names in it; of a single column its texts."""
    csv.field_size_limit(LONGEST_CHARACTERS)
    rows = csv.reader((line for _, line in _lines(stream, path)), delimiter=delimiter)
    try:
        header = next(rows, [])
        for row in rows:
            place = f"{path} line {rows.line_num}"
            if len(header) == 1 and row:
                yield place, {header[0]: row[0], "text": row[0]}
            elif row:
                yield place, dict(zip(header, row, strict=False))
    except csv.Error as error:
        hint = "the first line names the columns, and a text with commas or line breaks stands in double quotes"
        raise InputError(f"{path} line {rows.line_num} is not a row of a table: {error}", hint=hint) from None


def _parquet(path: Path, start: int) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ToolError(f"reading {path} needs the package 'pyarrow'", hint="pip install pyarrow") from None
    try:
        with ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in islice(enumerate(rows), start, None):
                yield f"{path} row {number}", row
    except ArrowException as error:
        raise InputError(f"{path} is not a Parquet file: {first_line(error)}", hint="is the file complete?") from None


def _values(stream: TextIO, path: Path) -> Iterator[Placed]:
    """The entries of the list that a JSON file holds; else its values, one behind the other."""
    source = _Source(stream, path)
    if source.peek() != "[":
        while source.peek():
            yield source.place, source.value()
        return
    source.skip()
    while source.peek() != "]":
        yield source.place, source.value()
        if source.peek() == ",":
            source.skip()
        elif source.peek() != "]":
            raise InputError(f"{source.place} is not JSON: a comma or the end of the list is missing", hint=_HINT)
    source.skip()
    if source.peek():
        raise InputError(f"{path} is not JSON: more text follows the end of the list", hint=_HINT)


class _Source:
    """A JSON text that is read a piece at a time."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._text, self._at, self._n_values = "", 0, 0
        self._decoder = json.JSONDecoder()

    @property
    def place(self) -> str:
        """The next value, for people."""
        return f"{self._path} record {self._n_values + 1}"

    def peek(self) -> str:
        """The next character that is not blank; none at the end."""
        while (end := self._blank_end()) == len(self._text):
            self._at = end
            if not self._read():
                return ""
        self._at = end
        return self._text[end]

    def skip(self) -> None:
        """Go past a character."""
        self._at += 1

    def value(self) -> Any:
        """The next value. Raises InputError, naming the place, if there is none."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on.
                if end < len(self._text) or not self._read():
                    break
            except (ValueError, RecursionError) as error:
                # What ends early may go on.
                if not isinstance(error, json.JSONDecodeError) or not self._read():
                    raise InputError(not_json(self.place, error), hint=_HINT) from None
        self._at, self._n_values = end, self._n_values + 1
        return value

    def _blank_end(self) -> int:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        return blank.end()

    def _read(self) -> bool:
        """Take in at least as much again as is there. Returns whether there was more; raises InputError past bounds."""
        rest = self._text[self._at :]
        if len(rest) > LONGEST_CHARACTERS:
            raise _endless(self.place)
        more = self._stream.read(max(_READ_CHARACTERS, len(rest)))
        if more:
            self._text, self._at = rest + more, 0
        return bool(more)


def _endless(place: str) -> InputError:
    return InputError(
        f"{place} has more than {LONGEST_CHARACTERS:,} characters",
        hint="a record is one document; plain text of any length is read from files with other names, such as .txt",
    )
