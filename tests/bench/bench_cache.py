"""Training from the cache beside training from memory: tokens per second, and how well the rows are mixed.

    python -m tests.bench.bench_cache [--tokens 400000] [--steps 24] [--rounds 3] [--threads 2]

Both ways take the same steps on float16 rows of 576 numbers, in turn; the best round of each counts. From memory, a
batch is gathered from rows in random order. The cache is on disk, where the system may have kept it in its own memory.

Mixing: how often two rows of one batch come from one block of text, beside a full shuffle of all rows.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.storage.shards import hook_path
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.activations.storage.token_shards import TokenRows, TokenShard, tokens_path, write_tokens
from circuitcli.activations.storage.writing import RowsWriter
from circuitcli.allocator import keep_freed_memory
from circuitcli.hookpoints import HookPoint
from circuitcli.text.blocks import Cursor
from circuitcli.training.plan import POOL_TOKENS
from tests.bench.bench_train import BATCH, D_IN, D_SAE, K, optimiser_of

HOOK = HookPoint(0, "resid")
BLOCK, SHARD = 128, 131_072


def write(root: Path, n_tokens: int) -> None:
    """A cache of random rows; the first two numbers of a row tell its block of text."""
    generator = torch.Generator().manual_seed(0)
    for index, first in enumerate(range(0, n_tokens, SHARD)):
        n_rows = min(SHARD, n_tokens - first)
        blocks = torch.arange(first, first + n_rows) // BLOCK
        rows = torch.randn(n_rows, D_IN, generator=generator)
        rows[:, 0], rows[:, 1] = (blocks // 256).float(), (blocks % 256).float()
        writer = RowsWriter(
            hook_path(root, HOOK, index), hook=HOOK, pieces=[n_rows], d_model=D_IN, dtype="float16", first_row=first
        )
        writer.put(StoredRows.of(rows.half()), [0])
        writer.finish(), writer.sync(), writer.publish()
        shard = TokenShard(
            n_rows=n_rows,
            first_row=first,
            cursor=Cursor(0, 0, 0),
            is_last=first + n_rows == n_tokens,
            bos_id=-1,
            fingerprint="",
        )
        places = torch.arange(n_rows)
        write_tokens(tokens_path(root, index), TokenRows(places % 97, blocks, places % BLOCK), shard)


def from_cache(cache: ActivationCache, seed: int) -> Iterator[Tensor]:
    """Batches as `circuit train` draws them."""
    stream = ShuffledBatches(
        cache,
        hooks=[HOOK],
        batch_size=BATCH,
        n_tokens=10**9,
        seed=seed,
        pool_tokens=POOL_TOKENS,
        stop_row=cache.n_tokens,
    )
    return (batch[HOOK] for batch in stream.from_step(0))


def from_memory(rows: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of rows that are all in memory."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    while True:
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield rows[order[start : start + BATCH]].float()


def seconds(batches: Iterator[Tensor], step: Callable[[Tensor], object], n_steps: int) -> float:
    """From the first step on: to fill the first pool is part of the start, however long the training."""
    step(next(batches))
    start = time.perf_counter()
    for batch in islice(batches, n_steps):
        step(batch)
    return time.perf_counter() - start


def pairs(batches: Iterator[Tensor], n_batches: int) -> float:
    """Pairs of rows in a batch that come from one block, for each row."""
    found = 0.0
    for batch in islice(batches, n_batches):
        _, counts = (256 * batch[:, 0] + batch[:, 1]).unique(return_counts=True)
        found += float((counts * (counts - 1)).sum()) / len(batch) / n_batches
    return found


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as folder:
        write(Path(folder), options.tokens)
        cache = ActivationCache(Path(folder), [HOOK])
        rows = torch.empty(cache.n_tokens, D_IN, dtype=torch.float16)
        cache.read_into(rows, HOOK, 0)
        ways = {"memory": lambda seed: from_memory(rows, seed), "cache": lambda seed: from_cache(cache, seed)}
        optimiser = optimiser_of(rows[:BATCH].float())
        best = {way: float("inf") for way in ways}
        for round_ in range(options.rounds):
            for way, batches in ways.items():
                took = seconds(batches(round_), lambda x: optimiser.step({HOOK: x}, index=100), options.steps)
                best[way] = min(best[way], took)
        mixing = {way: pairs(batches(7), 8) for way, batches in ways.items()}
    shape = f"d_in {D_IN}, d_sae {D_SAE}, k {K}, batch {BATCH}"
    print(f"{shape}, {options.threads} threads, {options.tokens:,} rows in float16")
    print(f"{'from':8}{'tokens/s':>12}{'of memory':>12}{'pairs of a block for each row':>32}")
    for way, took in best.items():
        rate = options.steps * BATCH / took
        print(f"{way:8}{rate:>12,.0f}{best['memory'] / took:>11.2f}x{mixing[way]:>32.2f}")


if __name__ == "__main__":
    main()
