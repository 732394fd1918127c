"""Documents cut into the blocks of tokens that a model sees at once.

A block never holds two documents. A long document becomes several blocks, each of which begins with BOS where the
tokenizer puts one; BOS fills a place of the block and is never stored. A special token that the text itself
contains is a token of the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from circuitcli.models.tokenizer import Tokenizer

# The documents of a text from a number on, as `activations.text.documents` gives them.
Documents = Callable[[int], Iterator[str]]


@dataclass(frozen=True, order=True)
class Cursor:
    """A place between two blocks: the next block's document, its index inside the document and in the whole text."""

    document: int = 0
    block: int = 0
    index: int = 0


@dataclass(frozen=True)
class Block:
    """What the model sees at once: ``ids`` with BOS, of which the first ``n_bos`` are not stored.

    ``index`` counts blocks from the start of the text; ``after`` is where the next block is found.
    """

    ids: tuple[int, ...]
    n_bos: int
    index: int
    after: Cursor

    @property
    def n_rows(self) -> int:
        """Token positions that are stored."""
        return len(self.ids) - self.n_bos


def token_blocks(
    documents: Documents, tokenizer: Tokenizer, *, block_length: int, start: Cursor | None = None
) -> Iterator[Block]:
    """Blocks of at most ``block_length`` tokens, BOS included, from the cursor on; empty documents give none."""
    cursor = start or Cursor()
    skipped, index = cursor.block, cursor.index
    prefix = tuple(tokenizer.with_bos(()))
    step = block_length - len(prefix)
    for number, text in enumerate(documents(cursor.document), cursor.document):
        ids = tuple(tokenizer.encode(text))
        pieces = [ids[at : at + step] for at in range(0, len(ids), step)]
        for position, piece in enumerate(pieces[skipped:], skipped + 1):
            is_last = position == len(pieces)
            after = Cursor(number + 1 if is_last else number, 0 if is_last else position, index + 1)
            yield Block(prefix + piece, len(prefix), index, after)
            index += 1
        skipped = 0


@dataclass(frozen=True)
class Batch:
    """Blocks padded on the right to one length; the first ``n_bos`` positions of each are not stored.

    ``attention_mask`` is None where nothing is padded, which lets attention take its fastest way; else ``rows`` are
    the stored places among the flattened positions behind BOS.
    """

    input_ids: Int[Tensor, "batch position"]
    n_bos: int
    attention_mask: Int[Tensor, "batch position"] | None
    rows: Int[Tensor, " row"] | None

    def stored(self, activation: Shaped[Tensor, "batch position ..."], dtype: torch.dtype) -> Shaped[Tensor, "row ..."]:
        """The rows of an activation to store, block after block, rounded to the dtype, on the activation's device."""
        behind = activation[:, self.n_bos :].to(dtype).flatten(0, 1)
        return behind if self.rows is None else behind.index_select(0, self.rows.to(behind.device))


def padded(blocks: Sequence[Block], *, pad_id: int) -> Batch:
    """One batch of the blocks; its rows are in the order of the blocks."""
    lengths = torch.tensor([len(block.ids) for block in blocks])
    n_bos, longest = blocks[0].n_bos, int(lengths.max())
    input_ids = torch.tensor([[*block.ids, *[pad_id] * (longest - len(block.ids))] for block in blocks])
    is_token = torch.arange(longest) < lengths[:, None]  # (batch, position)
    if bool(is_token.all()):
        return Batch(input_ids, n_bos, None, None)
    return Batch(input_ids, n_bos, is_token.long(), is_token[:, n_bos:].flatten().nonzero()[:, 0])
