"""Text from stdin, kept in the run so that the same command can go on after it was killed."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from circuitcli import runs
from circuitcli.cli.console import console
from circuitcli.cli.input import tell_what_is_waited_for
from circuitcli.errors import InputError
from circuitcli.runs import Run

SPOOLED_TEXT = "input.txt"
_CHUNK_BYTES = 2**20
# No text has tokens that are so long on average: what is behind so much text for each token is not needed.
TOKEN_BYTES = 64
_HEAD_BYTES = 8_192


def spool(run: Run, *, force: bool, n_tokens: int) -> Path:
    """Read stdin, a piece at a time, and keep it, or find that the run holds the same text.

    It is read to its end, or, as a pipe may have none, until there is surely enough for ``n_tokens``. Raises InputError
    if stdin is empty or no UTF-8 text, or if the run holds another text, unless ``force`` is set.
    """
    path, pieces = run.path / SPOOLED_TEXT, _text(max(_CHUNK_BYTES, n_tokens * TOKEN_BYTES))
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


def _text(limit_bytes: int) -> Iterator[bytes]:
    """What stdin has, of which the first piece has text in it."""
    pieces, held = _pieces(limit_bytes), list[bytes]()
    for piece in pieces:
        held.append(piece)
        if piece.strip():
            break
    else:
        raise InputError("stdin has no text", hint="give it one, for example `cat FILE | circuit collect --text -`")
    yield b"".join(held)
    yield from pieces


def _pieces(limit_bytes: int) -> Iterator[bytes]:
    """What stdin has, up to the last whole character of its first so many bytes."""
    tell_what_is_waited_for("waiting for the text on stdin")
    decoder, n_bytes = codecs.getincrementaldecoder("utf-8")(), 0
    is_over = False
    while not is_over:
        piece = sys.stdin.buffer.read(min(_CHUNK_BYTES, limit_bytes - n_bytes))
        if not n_bytes and b"\0" in piece[:_HEAD_BYTES]:
            raise InputError("stdin is not text: it contains NUL bytes", hint="a text has to be UTF-8")
        is_over = not piece
        n_pending = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=is_over)
        except UnicodeDecodeError as error:
            at = n_bytes - n_pending + error.start
            hint = "convert it, for example with `iconv -f latin1 -t utf-8`"
            raise InputError(f"stdin is not UTF-8 text: byte {at}", hint=hint) from None
        n_bytes += len(piece)
        if n_bytes == limit_bytes:
            console.say(f"only the first {n_bytes:,} bytes of stdin are kept: that is more text than --tokens asks for")
            yield piece[: len(piece) - len(decoder.getstate()[0])]
            return
        if piece:
            yield piece


def _check_same(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("rb") as stream:
        same = all(stream.read(len(piece)) == piece for piece in pieces) and not stream.read(1)
    if not same:
        raise InputError(f"{path} holds another text than stdin", hint="replace it with --force, or use another --run")
