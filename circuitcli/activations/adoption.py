"""Storing activations that another tool cached, as if they had been collected here."""

from collections.abc import Mapping
from contextlib import closing
from functools import partial

from circuitcli import group, processes, progress
from circuitcli.activations.background import ahead
from circuitcli.activations.collection import Collected, completed, done_rows
from circuitcli.activations.plans import Collection, StoredShard, plans
from circuitcli.activations.sae_lens import CachedSource
from circuitcli.activations.shard_files import ShardFiles


def adopt(source: CachedSource, collection: Collection) -> Collected:
    """Store the activations of the source, going on with what is there. Holds a batch in memory.

    Logs a warning if there are fewer than were asked for. Raises InputError if an activation is NaN or past the stored
    dtype, or if the disk is full.
    """
    return completed(collection, partial(_continue, source, collection))


def _continue(source: CachedSource, collection: Collection, stored: Mapping[int, StoredShard]) -> None:
    reporting = progress.task("collect", total=collection.n_tokens, unit="tokens", done=done_rows(stored))
    with closing(ahead(plans(source.blocks, collection, stored))) as planned, reporting as advance:
        for plan in planned:
            group.check()
            files = ShardFiles(plan, collection, d_model=source.cached.d_in, bos_id=source.bos_id)
            try:
                for batch in files.layout.batches if plan.hooks else ():
                    files.rows(source.hook).put(source.rows(batch.blocks), batch.pieces)
                files.publish()
            finally:
                files.abandon()
            advance(plan.n_rows * processes.count())
