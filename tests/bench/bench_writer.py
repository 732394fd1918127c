"""Writing shards: the writer as it is, beside buffered file operations and beside plain h5py, both by one thread.

    python -m tests.bench.bench_writer [--rounds 5] [--hooks 4] [--d-model 768] [--folder .]

Three shards of 16,384 float16 rows for each hook point, through the queue in front of the disk, synced as a collection
syncs them. Nothing else is done, so the disk is what is waited for, as it is where a GPU runs a small model. Ways take
turns; medians count. Plain h5py is here for its speed alone: on a full disk it brings the process down (SIGSEGV).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import h5py
import torch
from torch import Tensor

from circuitcli.activations.storage import disk, writing
from circuitcli.activations.storage.disk import DiskQueue, n_buffers
from circuitcli.activations.storage.shards import FILE_DTYPES, ROWS, hook_path
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.activations.storage.writing import RowsWriter, Span
from circuitcli.hookpoints import HookPoint

N_SHARDS, N_ROWS, BATCH, DTYPE = 3, 16_384, 1024, "float16"
WAYS = ("as it is", "buffered", "h5py")


class Buffered:
    """A file written through the page cache."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)

    def write(self, content: memoryview, offset: int) -> None:
        self._file.seek(offset)
        self._file.write(content)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class PlainWriter(RowsWriter):
    """All through h5py's outer interface."""

    def _create(self) -> dict[str, int]:
        self.content = h5py.File(self.partial, "w")
        self.content.attrs.update(asdict(self._header))
        shape = (self._header.n_rows, self._header.d_model)
        self.rows = self.content.create_dataset(ROWS, shape, FILE_DTYPES[DTYPE], track_times=False)
        return {ROWS: 0}

    def write(self, values: Tensor, spans: list[Span]) -> None:
        row = 2 * self._header.d_model
        for start, stop, place in spans:
            self.rows[place // row : (place + stop - start) // row] = values[start // row : stop // row].numpy()

    def finish(self) -> None:
        for name, part in self._summary.parts().items():
            self.content.create_dataset(name, data=part, track_times=False)
        self.content.close()


@contextmanager
def way(name: str) -> Iterator[type[RowsWriter]]:
    """The writer to use."""
    if name == "as it is":
        yield RowsWriter
        return
    with mock.patch.object(writing, "PlacedFile", Buffered), mock.patch.object(disk, "_N_THREADS", 1):
        yield RowsWriter if name == "buffered" else PlainWriter


def write(root: Path, writer: type[RowsWriter], *, hooks: int, rows: StoredRows) -> None:
    """All shards, as a collection would write them."""
    queue, pieces = DiskQueue(n_buffers(1)), [BATCH] * (N_ROWS // BATCH)
    d_model = rows.values.shape[1]
    for index in range(N_SHARDS):
        places = [HookPoint(layer, "resid") for layer in range(hooks)]
        files = [
            writer(hook_path(root, hook, index), hook=hook, pieces=pieces, d_model=d_model, dtype=DTYPE)
            for hook in places
        ]
        writes = []
        for piece in range(len(pieces)):
            for file in files:
                memory = queue.take(rows.values.nbytes)
                values = memory[: rows.values.nbytes].view(torch.float16).view(BATCH, d_model).copy_(rows.values)
                spans = file.accept(StoredRows(values, rows.sum, rows.sum_norm, rows.sum_square_norm), [piece])
                writes.append(
                    queue.submit(lambda file=file, values=values, spans=spans: file.write(values, spans), memory)
                )
        for one in writes:
            one.result()
        for step in (writer.finish, writer.sync, writer.publish):
            for file in files:
                step(file)
    queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hooks", type=int, default=4)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args()
    rows = StoredRows.of(torch.randn(BATCH, asked.d_model).half())
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    busy: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(asked.rounds + 1):
        for name in WAYS if number % 2 else reversed(WAYS):
            with tempfile.TemporaryDirectory(prefix="bench-", dir=asked.folder) as folder, way(name) as writer:
                os.sync()
                start, processor = time.perf_counter(), time.process_time()
                write(Path(folder), writer, hooks=asked.hooks, rows=rows)
                # The first round warms up.
                if number:
                    wall[name].append(time.perf_counter() - start)
                    busy[name].append(time.process_time() - processor)
    megabytes = N_SHARDS * N_ROWS * asked.hooks * asked.d_model * 2 / 1e6
    for name in WAYS:
        ratio = statistics.median(taken / usual for taken, usual in zip(wall[name], wall["as it is"], strict=True))
        print(
            f"{name:10} {megabytes / statistics.median(wall[name]):6.0f} MB/s, {ratio:.2f} times the seconds, "
            f"{statistics.median(busy[name]):.2f} s of processor for {megabytes:.0f} MB"
        )


if __name__ == "__main__":
    main()
