"""Running a model over text and storing what passes its hook points, shard by shard.

A shard ends with the first block at which it has ``shard_tokens`` rows, the collection with the first block at
which it has ``n_tokens`` or with the text. What a shard holds follows from the cursor at its start alone, and a batch
never spans two shards: a collection that was killed goes on at its first missing shard and makes the same bits as one
that was not, on the same device with the same batch size. Another batch size changes rounding only.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch

from circuitcli import progress, runs
from circuitcli.activations.background import Worker, ahead
from circuitcli.activations.blocks import Block, Cursor, Documents, padded, token_blocks
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.shards import (
    DTYPES,
    RowsShard,
    RowsWriter,
    StoredRows,
    hook_path,
    remove_partials,
)
from circuitcli.activations.token_shards import TokenRows, TokenShard, tokens_path, write_tokens
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models import taps
from circuitcli.models.loading import LanguageModel

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Collected:
    """Number of rows, and for each hook point a digest over those of its shards."""

    n_tokens: int
    digests: dict[HookPoint, str]


@dataclass(frozen=True)
class _Plan:
    """The blocks of one shard, in the order of the text."""

    index: int
    first_row: int
    blocks: tuple[Block, ...]
    is_last: bool

    @property
    def n_rows(self) -> int:
        return sum(block.n_rows for block in self.blocks)

    def token_rows(self) -> TokenRows:
        return TokenRows.of(self.blocks, [block.positions for block in self.blocks])

    def left_out(self) -> TokenRows:
        return TokenRows.of(self.blocks, [block.left_out for block in self.blocks])

    def batches(self, batch_size: int) -> Iterator[tuple[list[Block], list[tuple[int, int]]]]:
        """Blocks of like length together, so that little is padded, with the first row and number of rows of each."""
        firsts = [0, *accumulate(block.n_rows for block in self.blocks)]
        order = sorted(range(len(self.blocks)), key=lambda place: -len(self.blocks[place].ids))
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            yield [self.blocks[n] for n in chosen], [(firsts[n], self.blocks[n].n_rows) for n in chosen]


def collect(model: LanguageModel, documents: Documents, collection: Collection) -> Collected:
    """Store the activations of the text, going on with what is there. Holds a few batches in memory at a time.

    Logs a warning if the text ends early. Raises InputError if it has no token, if an activation is NaN or past the
    stored dtype, or if the disk is full.
    """
    done = finished_shards(collection)
    _remove_leftovers(collection, keep=len(done))
    if not done or not done[-1].is_last:
        _continue(model, documents, collection, done)
    cache = ActivationCache(collection.root, collection.hooks)
    if cache.n_tokens < collection.n_tokens:
        logger.warning("the text has %d tokens, fewer than the %d asked for", cache.n_tokens, collection.n_tokens)
    return Collected(cache.n_tokens, {hook: runs.digest(cache.digests(hook)) for hook in collection.hooks})


def finished_shards(collection: Collection) -> list[TokenShard]:
    """The shards of this collection that are there for all hook points, up to the first that is not."""
    found: list[TokenShard] = []
    while not found or not found[-1].is_last:
        try:
            shard = TokenShard.open(tokens_path(collection.root, len(found)))
            rows = [RowsShard.open(hook_path(collection.root, hook, len(found))) for hook in collection.hooks]
        except InputError:
            break
        if shard.fingerprint != collection.fingerprint or any(part.n_rows != shard.n_rows for part in rows):
            break
        found.append(shard)
    return found


def _remove_leftovers(collection: Collection, *, keep: int) -> None:
    """Remove partial files, and files of shards that do not count because some hook point lacks them."""
    remove_partials(collection.root)
    folders = {
        tokens_path(collection.root, 0).parent,
        *(collection.root / str(hook) for hook in collection.hooks),
    }
    for file in collection.root.glob("*/[0-9]*.h5"):
        if file.parent not in folders or int(file.stem) >= keep:
            file.unlink()


def _continue(model: LanguageModel, documents: Documents, collection: Collection, done: Sequence[TokenShard]) -> None:
    start = done[-1].cursor if done else Cursor()
    first_row = sum(shard.n_rows for shard in done)
    blocks = token_blocks(
        documents,
        model.tokenizer,
        block_length=collection.block_length,
        pack=collection.pack,
        special_tokens=collection.special_tokens,
        start=start,
    )
    plans = _plans(blocks, collection, index=len(done), first_row=first_row)
    writer = _ShardWriter(model, collection)
    reporting = progress.task("collect", total=collection.n_tokens, unit="tokens", done=first_row)
    try:
        with closing(ahead(plans)) as planned, Worker() as worker, reporting as advance:
            for plan in planned:
                worker.submit(writer.begin, plan)
                for batch, spans in plan.batches(collection.batch_size):
                    worker.submit(writer.put, _forward(model, batch, collection), spans)
                    advance(sum(block.n_rows for block in batch))
                worker.submit(writer.publish, plan)
            worker.drain()
    finally:
        writer.abandon()


def _plans(blocks: Iterator[Block], collection: Collection, *, index: int, first_row: int) -> Iterator[_Plan]:
    """Shards from the next block on. Raises InputError if there is no block."""
    block = next(blocks, None)
    if block is None:
        raise InputError(
            "the text has no token", hint="give another --text, or another --set data.field for JSON lines"
        )
    is_last = False
    while not is_last:
        taken: list[Block] = []
        n_rows = 0
        while block and n_rows < collection.shard_tokens and first_row + n_rows < collection.n_tokens:
            taken.append(block)
            n_rows += block.n_rows
            block = next(blocks, None)
        is_last = block is None or first_row + n_rows >= collection.n_tokens
        yield _Plan(index, first_row, tuple(taken), is_last)
        index, first_row = index + 1, first_row + n_rows


@torch.inference_mode()
def _forward(model: LanguageModel, blocks: list[Block], collection: Collection) -> dict[HookPoint, StoredRows]:
    """What is stored of the blocks, in their order."""
    adapter = model.adapter
    batch = padded(blocks, pad_id=model.tokenizer.pad_id)
    mask = None if batch.attention_mask is None else batch.attention_mask.to(adapter.device)
    found = taps.read(adapter, batch.input_ids.to(adapter.device), mask, collection.hooks)
    dtype = DTYPES[collection.dtype]
    return {hook: StoredRows.of(batch.stored(found[hook], dtype)) for hook in collection.hooks}


class _ShardWriter:
    """The files of the shard under way; all but ``abandon`` runs in the writing thread."""

    def __init__(self, model: LanguageModel, collection: Collection) -> None:
        self._collection = collection
        self._d_model = model.adapter.d_model
        self._bos_id = -1 if model.tokenizer.bos_id is None else model.tokenizer.bos_id
        self._files: dict[HookPoint, RowsWriter] = {}

    def begin(self, plan: _Plan) -> None:
        for hook in self._collection.hooks:
            path = hook_path(self._collection.root, hook, plan.index)
            self._files[hook] = RowsWriter(
                path, hook=hook, n_rows=plan.n_rows, d_model=self._d_model, dtype=self._collection.dtype
            )

    def put(self, rows: dict[HookPoint, StoredRows], spans: list[tuple[int, int]]) -> None:
        for hook, part in rows.items():
            self._files[hook].put(part, spans)

    def publish(self, plan: _Plan) -> None:
        for file in self._files.values():
            file.finish()
        for file in self._files.values():
            file.publish()
        shard = TokenShard(
            n_rows=plan.n_rows,
            first_row=plan.first_row,
            cursor=plan.blocks[-1].after,
            is_last=plan.is_last,
            bos_id=self._bos_id,
            fingerprint=self._collection.fingerprint,
        )
        path = tokens_path(self._collection.root, plan.index)
        write_tokens(path, plan.token_rows(), shard, left_out=plan.left_out())
        self._files = {}

    def abandon(self) -> None:
        """Remove what was not published."""
        for file in self._files.values():
            file.close()
        remove_partials(self._collection.root)
