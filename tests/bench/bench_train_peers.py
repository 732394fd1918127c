"""Training TopK SAEs beside sae-lens, dictionary-learning and eai-sparsify: tokens per second, and what was learned.

    python -m tests.bench.bench_train_peers [--tokens 524288] [--threads 2] [--data planted|RUN] [--only NAME ...]
    python -m tests.bench.bench_train_peers --device cuda --width 24576 --batch 8192
    python -m tests.bench.bench_train_peers --shrink 4 --tokens 50331648

Each library trains through its own trainer, from its own defaults, on the same batches: the libraries take their steps
in turn, so that a busy machine slows all alike, and a step's first, which sets things up, is not timed. Then the same
code measures all on the same held-out tokens. All have memory that is kept when it is freed, which their own users
have not. Libraries that are not installed are named and skipped.

``planted``: tokens are sparse sums of 3,072 random unit directions in 576 dimensions, 32 drawn with equal chances,
with strengths from an exponential distribution, about a mean that is not zero. A RUN directory: the
activations that `circuit collect` kept there, shuffled. ``--shrink 4`` divides dimensions, directions, those drawn, the
width and k by 4, for runs of many tokens.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcli.allocator import keep_freed_memory
from tests.bench.peers import DictionaryLearning, Ours, Peer, Rows, SaeLens, Shape, Sparsify, Weights

N_PLANTED, N_ACTIVE, D_PLANTED = 3072, 32, 576
HELD_OUT_TOKENS = 32_768
PIECE = 4096

PEERS: dict[str, Callable[[Shape, Tensor], Peer]] = {
    "circuit train": Ours,
    "sae-lens": SaeLens,
    "sae-lens, sparse": lambda shape, x: SaeLens(shape, x, is_sparse=True),
    "sae-lens, normalised": lambda shape, x: SaeLens(shape, x, is_normalised=True),
    "dictionary-learning": DictionaryLearning,
    "eai-sparsify": Sparsify,
}


class Data(NamedTuple):
    """Activations to train on, in this order, and others to measure on."""

    train: Rows
    held_out: Tensor


@dataclass
class Row:
    """What one library did."""

    seconds: float = 0.0
    timed_tokens: int = 0
    explained_variance: float = float("nan")
    silent: float = float("nan")


class Planted:
    """Tokens as the top of the file says, drawn anew at every reading: fifty million would not fit into memory."""

    def __init__(self, n_tokens: int, *, seed: int, shrink: int = 1) -> None:
        self._n_tokens, self._n_active = n_tokens, N_ACTIVE // shrink
        generator = torch.Generator().manual_seed(seed)
        self._directions = torch.randn(N_PLANTED // shrink, D_PLANTED // shrink, generator=generator)
        self._directions /= self._directions.norm(dim=1, keepdim=True)
        self._mean = torch.randn(D_PLANTED // shrink, generator=generator) / 2
        self._state = generator.get_state()

    def __len__(self) -> int:
        return self._n_tokens

    def split(self, n: int) -> Iterator[Tensor]:
        generator = torch.Generator()
        generator.set_state(self._state)
        for start in range(0, self._n_tokens, n):
            yield self._tokens(min(n, self._n_tokens - start), generator)

    def others(self, n: int, *, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pieces = [self._tokens(min(PIECE, n - start), generator) for start in range(0, n, PIECE)]
        return torch.cat(pieces)

    def _tokens(self, n: int, generator: torch.Generator) -> Tensor:
        features = torch.randint(len(self._directions), (n, self._n_active), generator=generator)
        strengths = torch.empty(n, self._n_active).exponential_(generator=generator)
        rows = self._mean + F.embedding_bag(features, self._directions, mode="sum", per_sample_weights=strengths)
        # Rounded as a cache stores them.
        return rows.half().float()


def planted(n_tokens: int, *, seed: int, shrink: int = 1) -> Data:
    train = Planted(n_tokens, seed=seed, shrink=shrink)
    return Data(train, train.others(HELD_OUT_TOKENS, seed=seed + 1))


def collected(run: Path, n_tokens: int, *, seed: int) -> Data:
    """Rows of the first hook point of a run, shuffled; tokens to train on repeat if there are too few."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.hookpoints import HookPoint

    folders = sorted(path.name for path in (run / "activations").iterdir() if path.is_dir() and path.name != "tokens")
    hook = HookPoint.parse(folders[0])
    cache = ActivationCache(run / "activations", [hook])
    rows = torch.empty(cache.n_tokens, cache.d_model(hook), dtype=cache.dtype(hook))
    cache.read_into(rows, hook, 0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    train = order[HELD_OUT_TOKENS:]
    return Data(rows[train[torch.arange(n_tokens) % len(train)]], rows[order[:HELD_OUT_TOKENS]].float())


def raced(peers: dict[str, Peer], data: Data, *, batch: int) -> dict[str, Row]:
    """Train all on the same batches, a step each in turn, and measure them."""
    rows = {name: Row() for name in peers}
    for index, rows_of_batch in enumerate(data.train.split(batch)):
        for name, peer in peers.items():
            x = rows_of_batch.to(peer.shape.device, torch.float32, copy=True)
            start = time.perf_counter()
            peer.step(x, index)
            if x.is_cuda:
                torch.cuda.synchronize()
            if index:
                rows[name].seconds += time.perf_counter() - start
                rows[name].timed_tokens += len(x)
    for name, peer in peers.items():
        rows[name].explained_variance, rows[name].silent = measured(peer, data.held_out)
    return rows


@torch.no_grad()
def measured(peer: Peer, held_out: Tensor) -> tuple[float, float]:
    """Explained variance with one mean and one ratio over all tokens, and the share of features that stay silent."""
    sae = Weights(*(part.cpu() for part in peer.finished()))
    is_active = torch.zeros(len(sae.b_enc), dtype=torch.bool)
    missed = total = 0.0
    mean = held_out.double().mean(dim=0)
    for x in held_out.split(PIECE):
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        values, features = pre.topk(peer.shape.k, dim=1)
        codes = torch.zeros_like(pre).scatter(1, features, values.relu())
        missed += float((codes @ sae.W_dec + sae.b_dec - x).double().square().sum())
        total += float((x.double() - mean).square().sum())
        is_active |= (codes > 0).any(dim=0)
    return 1 - missed / total, 1 - float(is_active.double().mean())


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=524_288)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default="planted")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(options.threads)
    n_steps, batch = options.tokens // options.batch, options.batch
    is_planted = options.data == "planted"
    data = (
        planted(n_steps * batch, seed=options.seed, shrink=options.shrink)
        if is_planted
        else collected(Path(options.data), n_steps * batch, seed=options.seed)
    )
    shape = Shape(
        data.held_out.shape[1],
        options.width // options.shrink,
        N_ACTIVE // options.shrink,
        batch,
        n_steps,
        options.seed,
        options.device,
    )
    peers: dict[str, Peer] = {}
    for name in options.only:
        try:
            peers[name] = PEERS[name](shape, data.train)
        except ImportError as error:
            print(f"{name}: not installed ({error.name})")
    rows = raced(peers, data, batch=shape.batch)
    print(f"{options.data}: {n_steps} steps of {shape.batch}, d_in {shape.d_in}, d_sae {shape.d_sae}, k {shape.k}")
    print(f"{'':22}{'tokens/s':>10}{'ratio':>8}{'explained variance':>20}{'silent':>8}")
    slowest = min(row.timed_tokens / row.seconds for row in rows.values())
    for name, row in rows.items():
        speed = row.timed_tokens / row.seconds
        print(f"{name:22}{speed:>10.0f}{speed / slowest:>8.2f}{row.explained_variance:>20.4f}{row.silent:>8.3f}")


if __name__ == "__main__":
    main()
