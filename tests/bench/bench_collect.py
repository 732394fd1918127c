"""How fast activations are collected, beside the bare forward pass, and read back in random order.

    python -m tests.bench.bench_collect [TOKENS]

Runs builtin:tiny and, if CIRCUIT_TEST_MODEL names a model, that one too. The bare pass sees the same batches, stops
after the deepest block and keeps nothing. Rounds alternate and the best one counts: other work disturbs both.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from circuitcli.activations import text
from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.blocks import Block, padded, token_blocks
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import Collection, collect
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models import taps
from circuitcli.models.loading import LanguageModel, load_model
from circuitcli.settings.data import DataSettings
from circuitcli.settings.model import ModelSettings

ROUNDS = 5


@dataclass(frozen=True)
class Speeds:
    """Best tokens per second, and bytes on disk."""

    bare: float
    collecting: float
    reading: float
    n_bytes: int


def documents(start: int):
    return text.documents(text.BUILTIN, start=start)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(model: LanguageModel, blocks: list[Block], hooks: list[HookPoint], batch_size: int) -> None:
    with torch.inference_mode():
        for at in range(0, len(blocks), batch_size):
            batch = padded(blocks[at : at + batch_size], pad_id=model.tokenizer.pad_id)
            device = model.adapter.device
            mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
            taps.read(model.adapter, batch.input_ids.to(device), mask, [max(hooks)])
        if device.type == "cuda":
            torch.cuda.synchronize()


def measure(name: str, n_tokens: int) -> Speeds:
    data, model = DataSettings(), load_model(ModelSettings(name=name))
    hooks = hook_points(range(model.adapter.n_layers), data.sites)
    everything = token_blocks(documents, model.tokenizer, block_length=data.block_length)
    blocks = list(islice(everything, n_tokens // (data.block_length - 1)))
    n_tokens = sum(block.n_rows for block in blocks)
    # As collect puts blocks of like length together.
    alike = sorted(blocks, key=lambda block: -len(block.ids))
    times: dict[str, list[float]] = {"bare": [], "collecting": [], "reading": []}
    bare(model, alike[: data.batch_size], hooks, data.batch_size)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            plan = Collection(
                root=Path(folder),
                hooks=tuple(hooks),
                n_tokens=n_tokens,
                block_length=data.block_length,
                batch_size=data.batch_size,
                dtype=data.dtype,
                shard_tokens=data.shard_tokens,
            )
            times["bare"].append(seconds(lambda: bare(model, alike, hooks, data.batch_size)))
            times["collecting"].append(seconds(lambda plan=plan: collect(model, documents, plan)))
            times["reading"].append(seconds(lambda folder=folder: read_back(Path(folder), hooks)))
            n_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.h5"))
    return Speeds(**{way: n_tokens / min(taken) for way, taken in times.items()}, n_bytes=n_bytes)


def read_back(root: Path, hooks: list[HookPoint]) -> None:
    cache = ActivationCache(root, hooks)
    n_rows = cache.n_tokens
    stream = ShuffledBatches(
        cache, hooks=hooks, batch_size=4096, n_tokens=n_rows, seed=0, pool_tokens=262_144, stop_row=n_rows
    )
    for _ in stream.from_step(0):
        pass


def main() -> None:
    n_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    names = ["builtin:tiny", *filter(None, [os.environ.get("CIRCUIT_TEST_MODEL")])]
    print(f"{torch.get_num_threads()} threads, {n_tokens} tokens, all layers, resid attn mlp, float16 on disk")
    print(f"{'model':30} {'bare tok/s':>12} {'collect tok/s':>14} {'ratio':>6} {'MB':>7} {'shuffled tok/s':>15}")
    for name in names:
        speeds = measure(name, n_tokens)
        ratio = speeds.collecting / speeds.bare
        print(
            f"{name[-30:]:30} {speeds.bare:12,.0f} {speeds.collecting:14,.0f} {ratio:6.2f} "
            f"{speeds.n_bytes / 1e6:7.0f} {speeds.reading:15,.0f}"
        )


if __name__ == "__main__":
    main()
