"""Storing activations that another tool cached, as if they had been collected here."""

import logging
from collections.abc import Iterator
from contextlib import closing

from circuitcli import progress, runs
from circuitcli.activations.background import ahead
from circuitcli.activations.blocks import Block, Cursor
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import Collected, Collection, finished_shards
from circuitcli.activations.sae_lens import CachedSource
from circuitcli.activations.shards import RowsWriter, hook_path, remove_partials
from circuitcli.activations.token_shards import TokenRows, TokenShard, tokens_path, write_tokens

logger = logging.getLogger(__name__)


def adopt(source: CachedSource, collection: Collection) -> Collected:
    """Store the activations of the source, going on with what is there. Holds a batch in memory.

    Logs a warning if there are fewer than were asked for. Raises InputError if an activation is NaN or past the stored
    dtype, or if the disk is full.
    """
    remove_partials(collection.root)
    done = finished_shards(collection)
    if not done or not done[-1].is_last:
        _continue(source, collection, done)
    cache = ActivationCache(collection.root, collection.hooks)
    if cache.n_tokens < collection.n_tokens:
        logger.warning("there are %d tokens, fewer than the %d asked for", cache.n_tokens, collection.n_tokens)
    return Collected(cache.n_tokens, {hook: runs.digest(cache.digests(hook)) for hook in collection.hooks})


def _continue(source: CachedSource, collection: Collection, done: list[TokenShard]) -> None:
    index, first_row = len(done), sum(shard.n_rows for shard in done)
    shards = _shards(source.blocks(done[-1].cursor if done else Cursor()), collection, first_row)
    reporting = progress.task("collect", total=collection.n_tokens, unit="tokens", done=first_row)
    with closing(ahead(shards)) as read_ahead, reporting as advance:
        for blocks, is_last in read_ahead:
            rows = TokenRows.of(blocks, [block.positions for block in blocks])
            shard = TokenShard(
                n_rows=len(rows.token),
                first_row=first_row,
                cursor=blocks[-1].after,
                is_last=is_last,
                bos_id=-1 if source.bos_id is None else source.bos_id,
                fingerprint=collection.fingerprint,
            )
            _write_rows(source, collection, index, blocks)
            left_out = TokenRows.of(blocks, [block.left_out for block in blocks])
            write_tokens(tokens_path(collection.root, index), rows, shard, left_out=left_out)
            advance(shard.n_rows)
            index, first_row = index + 1, first_row + shard.n_rows


def _shards(blocks: Iterator[Block], collection: Collection, n_done: int) -> Iterator[tuple[list[Block], bool]]:
    """The blocks of each shard, cut as those of a collection, and whether it is the last."""
    block = next(blocks, None)
    while block is not None:
        taken: list[Block] = []
        n_rows = 0
        while block is not None and n_rows < collection.shard_tokens and n_done + n_rows < collection.n_tokens:
            taken.append(block)
            n_rows += block.n_rows
            block = next(blocks, None)
        n_done += n_rows
        if n_done >= collection.n_tokens:
            block = None
        yield taken, block is None


def _write_rows(source: CachedSource, collection: Collection, index: int, blocks: list[Block]) -> None:
    file = RowsWriter(
        hook_path(collection.root, source.hook, index),
        hook=source.hook,
        n_rows=sum(block.n_rows for block in blocks),
        d_model=source.cached.d_in,
        dtype=collection.dtype,
    )
    try:
        first = 0
        for at in range(0, len(blocks), collection.batch_size):
            rows = source.rows(blocks[at : at + collection.batch_size])
            file.put(rows, [(first, len(rows.values))])
            first += len(rows.values)
        file.finish()
        file.publish()
    finally:
        file.close()
        remove_partials(collection.root)
