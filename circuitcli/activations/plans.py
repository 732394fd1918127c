"""Which shards a collection has, and which blocks of the text the missing ones are made of.

A shard ends with the first block at which it has ``shard_tokens`` rows, the collection with the first block at which it
has ``n_tokens``, or with the text. So what a shard holds follows from the cursor and the row at its start alone, which
the tokens of the shard before tell: any shard can be made by itself, by any of several processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from circuitcli import processes
from circuitcli.activations.storage.shards import RowsShard, hook_path
from circuitcli.activations.storage.token_shards import TokenRows, TokenShard, tokens_path
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.text.blocks import Block, Cursor

# The blocks of a text from a cursor on.
BlocksFrom = Callable[[Cursor], Iterator[Block]]


@dataclass(frozen=True)
class Collection:
    """What to store, and where: all that the stored numbers depend on besides model and text, plus ``batch_size``.

    ``fingerprint`` marks the shards; those of another fingerprint are made again.
    """

    root: Path
    hooks: tuple[HookPoint, ...]
    n_tokens: int
    block_length: int
    batch_size: int
    dtype: str
    shard_tokens: int
    fingerprint: str = ""
    pack: bool = False
    special_tokens: Literal["keep", "drop"] = "keep"
    dtypes: Mapping[HookPoint, str] = field(default_factory=dict)

    def dtype_of(self, hook: HookPoint) -> str:
        """The number type in which a hook point is stored: its own, else that of all."""
        return self.dtypes.get(hook, self.dtype)


@dataclass(frozen=True)
class StoredShard:
    """A shard whose tokens are there, and the hook points whose rows are not."""

    tokens: TokenShard
    missing: tuple[HookPoint, ...]


@dataclass(frozen=True)
class Plan:
    """The blocks of one shard, in the order of the text, the hook points whose rows are to be stored, and whether its
    tokens are."""

    index: int
    first_row: int
    blocks: tuple[Block, ...]
    is_last: bool
    hooks: tuple[HookPoint, ...]
    lacks_tokens: bool

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(block.n_rows for block in self.blocks)

    def token_rows(self) -> TokenRows:
        """The tokens that have a row."""
        return TokenRows.of(self.blocks, [block.positions for block in self.blocks])

    def left_out(self) -> TokenRows:
        """Those behind BOS that have none."""
        return TokenRows.of(self.blocks, [np.array(block.left_out, np.int64) for block in self.blocks])

    def layout(self, batch_size: int) -> "Layout":
        """How the blocks are run: those of like length together, so that little is padded."""
        order = sorted(range(len(self.blocks)), key=lambda number: -len(self.blocks[number].ids))
        batches = [_runs(sorted(order[at : at + batch_size])) for at in range(0, len(order), batch_size)]
        runs = sorted((run for batch in batches for run in batch), key=lambda run: run.start)
        number_of = {run: number for number, run in enumerate(runs)}
        return Layout(
            pieces=tuple(sum(self.blocks[block].n_rows for block in run) for run in runs),
            batches=tuple(
                PlannedBatch(
                    tuple(self.blocks[block] for run in batch for block in run),
                    tuple(number_of[run] for run in batch),
                )
                for batch in batches
            ),
        )


@dataclass(frozen=True)
class PlannedBatch:
    """Blocks that are run together, and the numbers of the pieces that their rows are."""

    blocks: tuple[Block, ...]
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A shard's rows in pieces, given by their numbers of rows: neighbouring blocks that are run together."""

    pieces: tuple[int, ...]
    batches: tuple[PlannedBatch, ...]


def _runs(numbers: Sequence[int]) -> list[range]:
    """Rising numbers as ranges without gaps."""
    edges = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    return [range(numbers[first], numbers[last - 1] + 1) for first, last in pairwise([0, *edges, len(numbers)])]


def survey(collection: Collection) -> dict[int, StoredShard]:
    """The shards of this collection whose tokens are there, by index."""
    stored = {}
    for path in tokens_path(collection.root, 0).parent.glob("[0-9]*.h5"):
        try:
            tokens = TokenShard.open(path)
        except InputError:
            continue
        if tokens.fingerprint == collection.fingerprint:
            index = int(path.stem)
            stored[index] = StoredShard(
                tokens, missing_rows(collection, index, first_row=tokens.first_row, n_rows=tokens.n_rows)
            )
    return stored


def missing_rows(collection: Collection, index: int, *, first_row: int, n_rows: int) -> tuple[HookPoint, ...]:
    """The hook points that lack a file of this collection with these rows."""

    def is_there(hook: HookPoint) -> bool:
        try:
            header = RowsShard.open(hook_path(collection.root, hook, index)).header
        except InputError:
            return False
        expected = (collection.fingerprint, first_row, n_rows)
        return (header.fingerprint, header.first_row, header.n_rows) == expected

    return tuple(hook for hook in collection.hooks if not is_there(hook))


def complete(stored: Mapping[int, StoredShard]) -> list[TokenShard]:
    """The shards that lack nothing, up to the first that does."""
    whole: list[TokenShard] = []
    while (shard := stored.get(len(whole))) is not None and not shard.missing:
        whole.append(shard.tokens)
    return whole


def plans(blocks_from: BlocksFrom, collection: Collection, stored: Mapping[int, StoredShard]) -> Iterator[Plan]:
    """The shards that this process has to make; of several, each makes every n-th. The text is read where it must be.

    Raises InputError if the text has no token.
    """
    reader: _Reader | None = None
    index, first_row, cursor, is_last = 0, 0, Cursor(), False
    while not is_last:
        there = stored.get(index)
        is_mine = index % processes.count() == processes.rank()
        if there is not None and there.tokens.first_row == first_row and not (is_mine and there.missing):
            reader, n_rows, cursor, is_last = None, there.tokens.n_rows, there.tokens.cursor, there.tokens.is_last
        else:
            reader = reader or _Reader(blocks_from(cursor), collection)
            blocks, n_rows, is_last = reader.shard(first_row)
            cursor = blocks[-1].after
            lacks = there is None or (there.tokens.first_row, there.tokens.n_rows) != (first_row, n_rows)
            if is_mine:
                missing = missing_rows(collection, index, first_row=first_row, n_rows=n_rows)
                yield Plan(index, first_row, blocks, is_last, missing, lacks)
        index, first_row = index + 1, first_row + n_rows


class _Reader:
    """The blocks of a text, shard by shard."""

    def __init__(self, blocks: Iterator[Block], collection: Collection) -> None:
        self._blocks, self._collection = blocks, collection

    def shard(self, first_row: int) -> tuple[tuple[Block, ...], int, bool]:
        """The blocks of the shard that begins with this row, its number of rows, and whether it is the last."""
        taken: list[Block] = []
        n_rows = 0
        while n_rows < self._collection.shard_tokens and first_row + n_rows < self._collection.n_tokens:
            block = next(self._blocks, None)
            if block is None:
                break
            taken.append(block)
            n_rows += block.n_rows
        if not taken:
            raise InputError(
                "the text has no tokens", hint="give another --text, or another --set data.field for JSON lines"
            )
        return tuple(taken), n_rows, self._is_over(first_row + n_rows)

    def _is_over(self, n_rows: int) -> bool:
        """Whether no shard follows: there are rows enough, or no further block."""
        if n_rows >= self._collection.n_tokens:
            return True
        following = next(self._blocks, None)
        if following is not None:
            self._blocks = chain([following], self._blocks)
        return following is None
