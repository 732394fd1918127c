"""Documents cut into the blocks of tokens that a model sees at once.

A block holds one document or a piece of it, or, packed, the end of one document, the next ones, and the beginning of
another, with the tokenizer's separator between two. Every block begins with BOS where the tokenizer puts one, and with
one only: BOS tokens that a document or a piece of one begins with are that one. BOS in front and separators between are
no text: they are never stored, wherever they came from. Any other special token that the text itself contains is a
token of the text; it is stored unless it is to be dropped, and the model sees it in any case.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.text.token_ids import Document, Ids, as_array

# Documents are tokenized together, in several threads, until they have so many characters. The first goes alone: who
# wants a few tokens only shall not wait for many.
_MOST_CHARACTERS = 2**20

# The documents of a source from a number on, as `activations.documents` gives them.
Documents = Callable[[int], Iterator[Document]]


@dataclass(frozen=True, order=True)
class Cursor:
    """A place between two blocks: the document that the next block begins with, how many tokens of it came before, and
    the block's index in the whole text."""

    document: int = 0
    offset: int = 0
    index: int = 0


@dataclass(frozen=True)
class Block:
    """What the model sees at once: ``ids`` with BOS, of which the first ``n_bos`` are not stored.

    ``left_out`` are the places behind them that are not stored either, in order. ``index`` counts blocks from the start
    of the text; ``after`` is where the next block is found.
    """

    ids: "array[int]"
    n_bos: int
    index: int
    after: Cursor
    left_out: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """Token positions that are stored."""
        return len(self.ids) - self.n_bos - len(self.left_out)

    @property
    def positions(self) -> Int64[np.ndarray, " row"]:
        """The places in ``ids`` that are stored."""
        behind = np.arange(self.n_bos, len(self.ids))
        return np.delete(behind, np.subtract(self.left_out, self.n_bos)) if self.left_out else behind


@dataclass(frozen=True)
class _Piece:
    """Tokens of one block behind BOS, the places of separators among them, and where the next piece begins."""

    ids: "array[int]"
    separators: tuple[int, ...]
    document: int
    offset: int


def token_blocks(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    block_length: int,
    pack: bool = False,
    special_tokens: Literal["keep", "drop"] = "keep",
    start: Cursor | None = None,
) -> Iterator[Block]:
    """Blocks of at most ``block_length`` tokens, BOS included, from the cursor on; blank documents give none.

    pack: fill each block but the last to ``block_length`` with the documents that follow. special_tokens: whether
    special tokens of the text are stored; a block that has nothing else is left out in any case.
    Raises InputError if documents are to be packed and the tokenizer has no separator.
    """
    cursor = start or Cursor()
    prefix = array("i", tokenizer.with_bos(()))
    length, index = block_length - len(prefix), cursor.index
    special = tokenizer.special_ids
    dropped = special if special_tokens == "drop" else frozenset[int]()
    if pack:
        pieces = _packed(documents, tokenizer, length=length, start=cursor)
    else:
        pieces = _apart(documents, tokenizer, length=length, start=cursor)
    for piece in pieces:
        if special.issuperset(piece.ids):
            continue
        left_out: Sequence[int] = piece.separators
        n_bos = tokenizer.n_bos(piece.ids)
        if n_bos or not dropped.isdisjoint(piece.ids):
            own = {*piece.separators, *range(n_bos)}
            left_out = [at for at, token in enumerate(piece.ids) if at in own or token in dropped]
        # The block's own BOS, if it has one, is that of the piece.
        n_cut = n_bos if prefix else 0
        index += 1
        after = Cursor(piece.document, piece.offset, index)
        places = tuple(at - n_cut + len(prefix) for at in left_out if at >= n_cut)
        yield Block(prefix + piece.ids[n_cut:], len(prefix), index - 1, after, places)


def _token_ids(documents: Documents, tokenizer: Tokenizer, *, start: int) -> Iterator["array[int]"]:
    """The tokens of each document without a BOS in front that blocks have anyway; a blank text has none.

    From number ``start`` on. Raises InputError for a conversation if there is no chat template, or one that refuses it.
    """
    for group in _groups(_written(documents(start), tokenizer, start=start)):
        texts = {at: document for at, document in enumerate(group) if isinstance(document, str) and document.strip()}
        encoded = dict(zip(texts, tokenizer.encode_all([*texts.values()]) if texts else (), strict=True))
        for at, document in enumerate(group):
            ids = encoded.get(at, array("i")) if isinstance(document, str) else as_array(document)
            yield tokenizer.own_part(ids)


def _written(documents: Iterable[Document], tokenizer: Tokenizer, *, start: int) -> Iterator[str | Ids]:
    """The documents with conversations as texts. Raises InputError, naming the document, for one that cannot be."""
    for number, document in enumerate(documents, start):
        if not isinstance(document, Conversation):
            yield document
            continue
        try:
            yield tokenizer.render(document)
        except InputError as error:
            raise InputError(f"document {number}, counted from 0: {error.message}", hint=error.hint) from None


def _groups(documents: Iterable[str | Ids]) -> Iterator[list[str | Ids]]:
    """The documents in groups that grow. Those in front of a bad document come before its error."""
    group: list[str | Ids] = []
    n_characters, enough = 0, 1
    try:
        for document in documents:
            group.append(document)
            n_characters += len(document)
            if n_characters >= enough:
                yield group
                group, n_characters, enough = [], 0, min(_MOST_CHARACTERS, enough + 2 * n_characters)
    except Exception:
        yield group
        raise
    yield group


def _apart(documents: Documents, tokenizer: Tokenizer, *, length: int, start: Cursor) -> Iterator[_Piece]:
    """Pieces of at most ``length`` tokens of one document each."""
    offset = start.offset
    for number, ids in enumerate(_token_ids(documents, tokenizer, start=start.document), start.document):
        while offset < len(ids):
            piece = ids[offset : offset + length]
            offset += length
            yield _piece(piece, (), number, offset, n_ids=len(ids))
        offset = 0


def _packed(documents: Documents, tokenizer: Tokenizer, *, length: int, start: Cursor) -> Iterator[_Piece]:
    """Pieces of ``length`` tokens, the last one perhaps shorter, with a separator where a document follows another."""
    separator = tokenizer.separator_id()
    filled = array("i")
    separators: list[int] = []
    offset, number = start.offset, start.document
    for number, ids in enumerate(_token_ids(documents, tokenizer, start=start.document), start.document):
        # At the beginning of a block there is nothing to separate from.
        if filled and ids and ids[0] != separator:
            separators.append(len(filled))
            filled.append(separator)
        while offset < len(ids):
            if offset == 0 and len(filled) < length and tokenizer.n_bos(ids):
                separators.append(len(filled))
            taken = ids[offset : offset + length - len(filled)]
            filled += taken
            offset += len(taken)
            if len(filled) == length:
                yield _piece(filled, tuple(separators), number, offset, n_ids=len(ids))
                filled, separators = array("i"), []
        offset = 0
    if filled:
        yield _Piece(filled, tuple(separators), number + 1, 0)


def _piece(ids: "array[int]", separators: tuple[int, ...], number: int, offset: int, *, n_ids: int) -> _Piece:
    """A piece that ends at an offset of a document; the next one begins with another document if that is its end."""
    is_end = offset >= n_ids
    return _Piece(ids, separators, number + is_end, 0 if is_end else offset)


@dataclass(frozen=True)
class Batch:
    """Blocks padded on the right to one length; the first ``n_bos`` positions of each are not stored.

    ``attention_mask`` is None where nothing is padded, which lets attention take its fastest way. ``rows`` are the
    stored places among the flattened positions behind BOS, None for all of them.
    """

    input_ids: Int[Tensor, "batch position"]
    n_bos: int
    attention_mask: Int[Tensor, "batch position"] | None
    rows: Int[Tensor, " row"] | None

    def parts(self, n_positions: int) -> "list[Part]":
        """The batch cut between blocks into parts of about so many positions, and those that store nothing left out."""
        n_blocks, length = len(self.input_ids), self.input_ids.shape[1] - self.n_bos
        parts, first_row = [], 0
        at_once = max(1, n_positions // max(1, length))
        for start in range(0, n_blocks, at_once):
            stop = min(start + at_once, n_blocks)
            last_row = stop * length
            positions = None
            if self.rows is not None:
                last_row = int(torch.searchsorted(self.rows, stop * length))
                positions = self.rows[first_row:last_row] - start * length
            if last_row > first_row:
                parts.append(Part(slice(start, stop), slice(first_row, last_row), positions))
            first_row = last_row
        return parts

    def stored(self, activation: Shaped[Tensor, "batch position ..."], dtype: torch.dtype) -> Shaped[Tensor, "row ..."]:
        """The rows of an activation to store, block after block, rounded to the dtype, on the activation's device."""
        behind = activation[:, self.n_bos :].to(dtype).flatten(0, 1)
        return behind if self.rows is None else behind.index_select(0, self.rows.to(behind.device))


class Part(NamedTuple):
    """Some neighbouring blocks of a batch, and their rows among those of the batch.

    ``positions`` are the stored ones among the flattened positions of the part behind BOS, None for all of them.
    """

    blocks: slice
    rows: slice
    positions: Int[Tensor, " row"] | None


def padded(blocks: Sequence[Block], *, pad_id: int) -> Batch:
    """One batch of the blocks; its rows are in the order of the blocks."""
    lengths = np.array([len(block.ids) for block in blocks])
    n_bos, longest = blocks[0].n_bos, int(lengths.max())
    input_ids = np.full((len(blocks), longest), pad_id, np.int64)
    is_token = np.arange(longest) < lengths[:, None]  # (batch, position)
    is_stored = is_token.copy()
    for row, block in enumerate(blocks):
        input_ids[row, : len(block.ids)] = block.ids
        is_stored[row, [*block.left_out]] = False
    rows = is_stored[:, n_bos:].reshape(-1)
    return Batch(
        torch.from_numpy(input_ids),
        n_bos,
        None if is_token.all() else torch.from_numpy(is_token).long(),
        None if rows.all() else torch.from_numpy(np.flatnonzero(rows)),
    )
