"""Text from stdin, kept in the run so that the same command can go on after it was killed."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from circuitcli import runs
from circuitcli.cli.input import tell_what_is_waited_for
from circuitcli.errors import InputError
from circuitcli.runs import Run

SPOOLED_TEXT = "input.txt"
_CHUNK_BYTES = 2**20


def spool(run: Run, *, force: bool) -> Path:
    """Read stdin to its end, a piece at a time, and keep it, or find that the run holds the same text.

    Raises InputError if stdin is empty or no UTF-8 text, or if the run holds another text, unless ``force`` is set.
    """
    path, pieces = run.path / SPOOLED_TEXT, _text()
    # Stdin without text leaves no trace of a run.
    begun = [next(pieces)]
    with run.lock():
        if path.is_file() and not force:
            _check_same(path, chain(begun, pieces))
        else:
            with runs.atomic(path, "wb") as stream:
                for piece in chain(begun, pieces):
                    stream.write(piece)
    return path


def _text() -> Iterator[bytes]:
    """What stdin has, of which the first piece has text in it."""
    pieces, held = _pieces(), list[bytes]()
    for piece in pieces:
        held.append(piece)
        if piece.strip():
            break
    else:
        raise InputError("stdin has no text", hint="give it one, for example `cat FILE | circuit collect --text -`")
    yield b"".join(held)
    yield from pieces


def _pieces() -> Iterator[bytes]:
    tell_what_is_waited_for("waiting for the text on stdin")
    decoder, n_bytes = codecs.getincrementaldecoder("utf-8")(), 0
    is_over = False
    while not is_over:
        piece = sys.stdin.buffer.read(_CHUNK_BYTES)
        is_over = not piece
        n_pending = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=is_over)
        except UnicodeDecodeError as error:
            at = n_bytes - n_pending + error.start
            hint = "convert it, for example with `iconv -f latin1 -t utf-8`"
            raise InputError(f"stdin is no UTF-8 text: byte {at}", hint=hint) from None
        n_bytes += len(piece)
        if piece:
            yield piece


def _check_same(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("rb") as stream:
        same = all(stream.read(len(piece)) == piece for piece in pieces) and not stream.read(1)
    if not same:
        raise InputError(f"{path} holds another text than stdin", hint="use --force to replace it, or another --run")
