"""How fast activations are collected, beside the bare forward pass, and read back in random order; peak memory.

    python -m tests.bench.bench_collect [--seconds 8] [--rounds 3] [--hooks 1,all] [--memory]

Runs builtin:tiny and, if CIRCUIT_TEST_MODEL names a model, that one too. The bare pass sees the same batches with the
same number of threads, stops after the deepest block and keeps nothing; its text is tokenized beforehand. Rounds
alternate and the best one counts: other work disturbs both. ``--memory`` collects 100,000 and 1,000,000 tokens of
builtin:tiny instead, each in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch

from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import collect
from circuitcli.activations.plans import Collection
from circuitcli.allocator import keep_freed_memory
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models import taps
from circuitcli.models.loading import LanguageModel, load_model
from circuitcli.settings.data import BLOCK_LENGTH, DataSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.text import files as text
from circuitcli.text.blocks import Block, padded, token_blocks
from circuitcli.training.memory import peak_process_bytes

DATA = DataSettings(block_length=BLOCK_LENGTH, dtype="float16")
GROWTH_TOKENS = (100_000, 1_000_000)


@dataclass(frozen=True)
class Speeds:
    """Best tokens per second, and bytes on disk."""

    n_tokens: int
    bare: float
    collecting: float
    reading: float
    n_bytes: int


def documents(start: int):
    """The standard library, again and again: it has 11 million tokens."""
    return chain(text.documents(text.BUILTIN, start=start), *(text.documents(text.BUILTIN) for _ in range(9)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(model: LanguageModel, blocks: Sequence[Block], hooks: Sequence[HookPoint]) -> None:
    device = model.adapter.device
    with torch.inference_mode():
        for at in range(0, len(blocks), DATA.batch_size):
            batch = padded(blocks[at : at + DATA.batch_size], pad_id=model.tokenizer.pad_id)
            mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
            taps.read(model.adapter, batch.input_ids.to(device), mask, [max(hooks)])
        if device.type == "cuda":
            torch.cuda.synchronize()


def some_blocks(model: LanguageModel, hooks: Sequence[HookPoint], seconds_wanted: float) -> list[Block]:
    """Blocks that fill so many seconds of bare forward passes, in whole batches for every thread."""
    everything = token_blocks(documents, model.tokenizer, block_length=DATA.block_length)
    trial = list(islice(everything, DATA.batch_size))
    bare(model, trial, hooks)
    took = min(seconds(lambda: bare(model, trial, hooks)) for _ in range(3))
    n_lanes = torch.get_num_threads()
    n_batches = n_lanes * max(2, round(seconds_wanted / took / n_lanes))
    return trial + list(islice(everything, (n_batches - 1) * DATA.batch_size))


def measure(model: LanguageModel, hooks: Sequence[HookPoint], *, seconds_wanted: float, rounds: int) -> Speeds:
    blocks = some_blocks(model, hooks, seconds_wanted)
    n_tokens = sum(block.n_rows for block in blocks)
    # As collect puts blocks of like length together.
    alike = sorted(blocks, key=lambda block: -len(block.ids))
    times: dict[str, list[float]] = {"bare": [], "collecting": [], "reading": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as folder:
            root = Path(folder)
            times["bare"].append(seconds(lambda: bare(model, alike, hooks)))
            times["collecting"].append(seconds(lambda root=root: collect_into(root, model, hooks, n_tokens)))
            times["reading"].append(seconds(lambda root=root: read_back(root, hooks)))
            n_bytes = sum(path.stat().st_size for path in root.rglob("*.h5"))
    speeds = {way: n_tokens / min(taken) for way, taken in times.items()}
    return Speeds(n_tokens=n_tokens, **speeds, n_bytes=n_bytes)


def collect_into(root: Path, model: LanguageModel, hooks: Sequence[HookPoint], n_tokens: int) -> None:
    plan = Collection(
        root=root,
        hooks=tuple(hooks),
        n_tokens=n_tokens,
        block_length=DATA.block_length,
        batch_size=DATA.batch_size,
        dtype=DATA.dtype,
        shard_tokens=DATA.shard_tokens,
    )
    collect(model, documents, plan)


def read_back(root: Path, hooks: Sequence[HookPoint]) -> None:
    cache = ActivationCache(root, hooks)
    n_rows = cache.n_tokens
    stream = ShuffledBatches(
        cache, hooks=hooks, batch_size=4096, n_tokens=n_rows, seed=0, pool_tokens=262_144, stop_row=n_rows
    )
    for _ in stream.from_step(0):
        pass


def chosen_hooks(model: LanguageModel, number: str) -> list[HookPoint]:
    """All of them, or so many: the residual stream in the middle, then what else is there."""
    everything = hook_points(range(model.adapter.n_layers), DATA.sites)
    middle = model.adapter.n_layers // 2
    nearest = sorted(everything, key=lambda hook: (hook.layer // 2 != middle // 2, hook.site != "resid", hook.layer))
    return everything if number == "all" else sorted(nearest[: int(number)])


def table(numbers: Sequence[str], *, seconds_wanted: float, rounds: int) -> None:
    names = ["builtin:tiny", *filter(None, [os.environ.get("CIRCUIT_TEST_MODEL")])]
    print(f"{torch.get_num_threads()} threads, batches of {DATA.batch_size} blocks of {DATA.block_length}, float16")
    print(
        f"{'model':20} {'hook points':>11} {'tokens':>9} {'bare tok/s':>11} {'collect tok/s':>14} {'ratio':>6} "
        f"{'MB':>6} {'shuffled tok/s':>15}"
    )
    for name in names:
        model = load_model(ModelSettings(name=name))
        for number in numbers:
            hooks = chosen_hooks(model, number)
            speeds = measure(model, hooks, seconds_wanted=seconds_wanted, rounds=rounds)
            print(
                f"{name[-20:]:20} {len(hooks):11} {speeds.n_tokens:9,} {speeds.bare:11,.0f} {speeds.collecting:14,.0f} "
                f"{speeds.collecting / speeds.bare:6.2f} {speeds.n_bytes / 1e6:6.0f} {speeds.reading:15,.0f}",
                flush=True,
            )


def grow() -> None:
    for n_tokens in GROWTH_TOKENS:
        subprocess.run([sys.executable, "-m", __spec__.name, "--peak", str(n_tokens)], check=True)


def peak(n_tokens: int) -> None:
    """Collect in this process and print its peak memory."""
    model = load_model(ModelSettings(name="builtin:tiny"))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as folder:
        collect_into(Path(folder), model, hook_points([3], DATA.sites), n_tokens)
    megabytes = peak_process_bytes() / 1e6
    print(f"{n_tokens:9,} tokens of builtin:tiny, 3 hook points: {megabytes:.0f} MB at most", flush=True)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a bare pass over the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hooks", default="1,6,all", help="numbers of hook points")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
    elif options.memory:
        grow()
    else:
        table(options.hooks.split(","), seconds_wanted=options.seconds, rounds=options.rounds)


if __name__ == "__main__":
    main()
