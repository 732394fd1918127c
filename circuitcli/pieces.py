"""Bytes that are no whole character, which tokenizers cut out of characters: joined to what they make.

A token of such bytes is shown as ``<0xE6>``, as `Tokenizer.token_strings` writes it. Tokens in a row whose bytes make
whole characters are one piece of text; what stays incomplete stays as it is.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import NamedTuple

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_DECODER = getincrementaldecoder("utf-8")


class Piece(NamedTuple):
    """Tokens ``start`` to ``stop`` - 1, and the text that they are together."""

    start: int
    stop: int
    text: str


def joined(tokens: Sequence[str]) -> list[Piece]:
    """The tokens as pieces of text, in order: most are one token each."""
    pieces: list[Piece] = []
    start = 0
    while start < len(tokens):
        # Nearly all tokens are text, and there are very many of them.
        whole = _whole(tokens, start) if tokens[start][:3] == "<0x" else None
        pieces.append(whole or Piece(start, start + 1, tokens[start]))
        start = pieces[-1].stop
    return pieces


def texts(tokens: Sequence[str]) -> list[str]:
    """The texts of the pieces."""
    return [piece.text for piece in joined(tokens)]


def each(tokens: Sequence[str]) -> list[str]:
    """A text for each token that people can read: of a token that is a part of a character, the character and which
    of its tokens this is, ``文 1/3``."""
    told = []
    for piece in joined(tokens):
        n = piece.stop - piece.start
        told += [piece.text] if n == 1 else [f"{piece.text} {number}/{n}" for number in range(1, n + 1)]
    return told


def furthest(values: Sequence[float], pieces: Sequence[Piece]) -> list[float]:
    """For each piece that of its tokens' values which is furthest from zero."""
    return [max(values[piece.start : piece.stop], key=abs) for piece in pieces]


def place_of(index: int, pieces: Sequence[Piece]) -> int:
    """Which piece a token belongs to."""
    return next((number for number, piece in enumerate(pieces) if index < piece.stop), len(pieces) - 1)


def _whole(tokens: Sequence[str], start: int) -> Piece | None:
    """The piece that begins with a token of bytes and ends where a character does; None if it never does."""
    decoder, text = _DECODER(), ""
    for index in range(start, len(tokens)):
        if not _BYTES.fullmatch(tokens[index]):
            return None
        try:
            text += decoder.decode(bytes.fromhex(tokens[index].replace("<0x", "").replace(">", "")))
        except UnicodeDecodeError:
            return None
        if not decoder.getstate()[0]:
            return Piece(start, index + 1, text)
    return None
