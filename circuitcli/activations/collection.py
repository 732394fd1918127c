"""Running a model over text and storing what passes its hook points, shard by shard.

A batch never spans two shards: a collection that was killed, or lost some files, makes what is missing, and the same
bits as one that was not, on the same device with the same batch size and number of threads. Others change rounding.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

from circuitcli import group, processes, progress, runs
from circuitcli.activations.background import Worker, ahead
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.lanes import blocks_at_once, lanes, n_lanes
from circuitcli.activations.passes import passes
from circuitcli.activations.plans import BlocksFrom, Collection, StoredShard, complete, plans, survey
from circuitcli.activations.shard_files import ShardFiles
from circuitcli.activations.storage.disk import DiskQueue, n_buffers
from circuitcli.activations.storage.token_shards import tokens_path
from circuitcli.activations.storage.writing import remove_partials
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.text.blocks import Block, Cursor, Documents, token_blocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """Number of rows, and for each hook point a digest over those of its shards."""

    n_tokens: int
    digests: dict[HookPoint, str]


def collect(model: LanguageModel, documents: Documents, collection: Collection) -> Collected:
    """Store the activations of the text, going on with what is there. Holds a few batches in memory at a time.

    Logs a warning if the text ends early. Raises InputError if it has no token, if an activation is NaN or past the
    stored dtype, or if the disk is full.
    """

    def blocks_from(cursor: Cursor) -> Iterator[Block]:
        return token_blocks(
            documents,
            model.tokenizer,
            block_length=collection.block_length,
            pack=collection.pack,
            special_tokens=collection.special_tokens,
            start=cursor,
        )

    return completed(collection, partial(_continue, model, blocks_from, collection))


def completed(collection: Collection, work: Callable[[Mapping[int, StoredShard]], None]) -> Collected:
    """What is stored after ``work`` has made what is missing; it is told what is there, and not called for nothing.

    Several processes return together. Logs a warning if there is less than was asked for.
    """
    if processes.is_main():
        remove_partials(collection.root)
    group.barrier()
    stored = survey(collection)
    if not _is_whole(stored):
        work(stored)
    group.barrier()
    cache = ActivationCache(collection.root, collection.hooks)
    if processes.is_main():
        _remove_others(collection, n_shards=cache.n_shards)
    if cache.n_tokens < collection.n_tokens:
        logger.warning("there are %d tokens, fewer than the %d asked for", cache.n_tokens, collection.n_tokens)
    return Collected(cache.n_tokens, {hook: runs.digest(cache.digests(hook)) for hook in collection.hooks})


def _is_whole(stored: Mapping[int, StoredShard]) -> bool:
    whole = complete(stored)
    return bool(whole) and whole[-1].is_last


def _remove_others(collection: Collection, *, n_shards: int) -> None:
    """Remove what an earlier collection left: other hook points, and shards behind the last."""
    folders = {tokens_path(collection.root, 0).parent, *(collection.root / str(hook) for hook in collection.hooks)}
    for file in collection.root.glob("*/[0-9]*.h5"):
        if file.parent not in folders or int(file.stem) >= n_shards:
            file.unlink()


def done_rows(stored: Mapping[int, StoredShard]) -> int:
    """How many rows need no more work."""
    return sum(shard.tokens.n_rows for shard in stored.values() if not shard.missing)


def _continue(
    model: LanguageModel, blocks_from: BlocksFrom, collection: Collection, stored: Mapping[int, StoredShard]
) -> None:
    adapter, bos_id = model.adapter, model.tokenizer.bos_id
    at_once = blocks_at_once(
        collection.batch_size, block_length=collection.block_length, d_model=adapter.d_model, device=adapter.device.type
    )
    collection = replace(collection, batch_size=at_once)
    begun: list[ShardFiles] = []
    reporting = progress.task("collect", total=collection.n_tokens, unit="tokens", done=done_rows(stored))
    with ExitStack() as stack:
        # Left from the last to the first: what a thread uses must be there until the thread has ended.
        planned = stack.enter_context(closing(ahead(plans(blocks_from, collection, stored))))
        stack.callback(lambda: _abandon(begun))
        disk = DiskQueue(n_buffers(n_lanes(adapter)), pinned=adapter.device.type == "cuda")
        stack.callback(disk.close)
        publisher = stack.enter_context(Worker(keeps=True))
        advance = stack.enter_context(reporting)
        forward = stack.enter_context(passes(model, collection, disk))
        working = stack.enter_context(lanes(adapter))
        stack.callback(forward.stop)
        for plan in planned:
            group.check()
            begun = [files for files in begun if not files.is_published]
            files = ShardFiles(plan, collection, d_model=adapter.d_model, bos_id=bos_id)
            begun.append(files)
            if not plan.hooks:
                advance(plan.n_rows)
            for batch in files.layout.batches if plan.hooks else ():
                working.submit(forward.store, files, batch, then=lambda n_rows: advance(n_rows * processes.count()))
            working.then(partial(publisher.submit, files.publish))
        working.drain()
        publisher.drain()


def _abandon(begun: Iterable[ShardFiles]) -> None:
    for files in begun:
        files.abandon()
