"""All files of one shard under way: the rows of each hook point, and the tokens."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from torch import Tensor

from circuitcli.activations.plans import Collection, Plan
from circuitcli.activations.storage.disk import DiskQueue
from circuitcli.activations.storage.shards import hook_path
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.activations.storage.token_shards import TokenShard, tokens_path, write_tokens
from circuitcli.activations.storage.writing import RowsWriter
from circuitcli.hookpoints import HookPoint


class ShardFiles:
    """The files of a shard that are missing, written in any order and published together."""

    def __init__(self, plan: Plan, collection: Collection, *, d_model: int, bos_id: int | None) -> None:
        self.plan, self._collection, self._d_model, self._bos_id = plan, collection, d_model, bos_id
        self.layout = plan.layout(collection.batch_size)
        self.is_published = False
        self._rows: dict[HookPoint, RowsWriter] = {}
        self._making = threading.Lock()
        self._writes: list[Future[None]] = []

    def rows(self, hook: HookPoint) -> RowsWriter:
        """The file of a hook point. Raises InputError if it cannot be made."""
        with self._making:
            # Made when the model first comes to it, not all before it begins.
            if hook not in self._rows:
                self._rows[hook] = RowsWriter(
                    hook_path(self._collection.root, hook, self.plan.index),
                    hook=hook,
                    pieces=self.layout.pieces,
                    d_model=self._d_model,
                    dtype=self._collection.dtype_of(hook),
                    first_row=self.plan.first_row,
                    fingerprint=self._collection.fingerprint,
                )
            return self._rows[hook]

    def store(
        self, hook: HookPoint, rows: StoredRows, pieces: Sequence[int], *, memory: Tensor, disk: DiskQueue
    ) -> None:
        """Have some pieces of the rows written, which are in ``memory`` of the disk's queue.

        Raises InputError for NaN or infinity.
        """
        writer = self.rows(hook)
        spans = writer.accept(rows, pieces)
        self._writes.append(disk.submit(lambda: writer.write(rows.values, spans), memory))

    def publish(self) -> None:
        """Complete all files and give them their names, the tokens last: they stand for the whole shard."""
        for write in self._writes:
            write.result()
        for step in (RowsWriter.finish, RowsWriter.sync, RowsWriter.publish):
            for file in self._rows.values():
                step(file)
        if self.plan.lacks_tokens:
            self._write_tokens()
        self.is_published = True

    def _write_tokens(self) -> None:
        plan = self.plan
        shard = TokenShard(
            n_rows=plan.n_rows,
            first_row=plan.first_row,
            cursor=plan.blocks[-1].after,
            is_last=plan.is_last,
            bos_id=-1 if self._bos_id is None else self._bos_id,
            fingerprint=self._collection.fingerprint,
        )
        path = tokens_path(self._collection.root, plan.index)
        write_tokens(path, plan.token_rows(), shard, left_out=plan.left_out())

    def abandon(self) -> None:
        """Remove what was not published."""
        if not self.is_published:
            for file in self._rows.values():
                file.remove()
