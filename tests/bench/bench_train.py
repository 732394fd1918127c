"""Tokens per second of one training step, beside the plain dense one and the encoder product alone.

    python -m tests.bench.bench_train [--threads 2] [--rounds 5]
    python -m tests.bench.bench_train --device cuda --d-in 768 --d-sae 24576 --batch 8192

They take turns, and the best round of each counts, so that a busy machine slows all alike. ``unscreened`` multiplies in
float32 where `saes.screening` would spare it, ``autocast`` in bfloat16; ``later`` is with 32 codes a token, which these
architectures reach as they learn.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast
from unittest import mock

import torch
from torch import Tensor

from circuitcli.allocator import keep_freed_memory
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.fast import screening
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.sae import SaeSettings
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments, TrainableCoder, TrainingConfig
from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig
from circuitcli.training.schedule import LearningRateSchedule

D_IN, D_SAE, K, BATCH = 576, 4608, 32, 4096
# So small that the number of codes stays, in steps that all see one batch.
RATE = 1e-6
HOOK = HookPoint(0, "resid")
ARCHITECTURES = ("batchtopk", "matryoshka", "jumprelu", "relu", "gated")
# These have half of all features active when they begin, and few later.
WITHOUT_K = ("relu", "gated")


@dataclass(frozen=True)
class Size:
    """Of the SAE."""

    d_in: int = D_IN
    d_sae: int = D_SAE


def optimiser_of(
    x: Tensor, size: Size = Size(), architecture: str = "topk", *, autocast: bool = False, has_learned: bool = False
) -> CoderOptimiser:
    """As `circuit train` makes it. has_learned: with K codes a token, where the architecture begins with more."""
    sae = SaeSettings(architecture=architecture, k=K)
    config = TrainingConfig(sae, size.d_sae, auxk_weight=1 / 32, dead_tokens=10**9, autocast=autocast)
    trainable = new_trainable((HOOK,), {HOOK: x}, config, {HOOK: ActivationMoments(size.d_in, size.d_in)})
    if has_learned:
        sae = cast(TrainableCoder, trainable).sae
        with torch.no_grad():
            sae.b_enc -= sae.pre_activations(x).flatten().topk(K * len(x)).values[-1]
    return CoderOptimiser(trainable, OptimiserConfig(LearningRateSchedule(RATE, 1000, 0.05, 0.3), clip=1.0))


def sparse_step(
    x: Tensor, size: Size, architecture: str = "topk", *, autocast: bool = False, has_learned: bool = False
) -> Callable[[], object]:
    """A step as `circuit train` takes it."""
    optimiser = optimiser_of(x, size, architecture, autocast=autocast, has_learned=has_learned)
    return lambda: optimiser.step({HOOK: x}, index=100)


def dense_step(x: Tensor, size: Size) -> Callable[[], object]:
    """The definition, with plain autograd and Adam as they come."""
    sae = TopKSae(SaeConfig(HOOK, size.d_in, size.d_sae), k=K)
    with torch.no_grad():
        torch.nn.init.normal_(sae.W_dec)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)
    sae.to(x.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = (sae.decode(sae.encode(x)) - x).square().sum(dim=1).mean()
        loss.backward()
        decoder = sae.W_dec
        assert decoder.grad is not None
        decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder.detach()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)

    return step


def unscreened_step(x: Tensor, size: Size) -> Callable[[], object]:
    """A step as `circuit train` takes it on a processor without units for bfloat16."""
    step = sparse_step(x, size)

    def run() -> None:
        with mock.patch.object(screening, "has_bfloat16_units", return_value=False):
            step()

    return run


def encoder_product(x: Tensor, size: Size, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """What no TopK step can avoid, in one number type or the other."""
    W_enc, x = torch.randn(size.d_in, size.d_sae, device=x.device).to(dtype), x.to(dtype)
    return lambda: x @ W_enc


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--d-in", type=int, default=D_IN)
    parser.add_argument("--d-sae", type=int, default=D_SAE)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, batch = Size(options.d_in, options.d_sae), options.batch
    x = torch.randn(batch, size.d_in, generator=torch.Generator().manual_seed(0)).to(options.device)
    makers = {
        "circuit train": sparse_step,
        "unscreened": unscreened_step,
        "with autocast": partial(sparse_step, autocast=True),
        **{name: partial(sparse_step, architecture=name) for name in ARCHITECTURES},
        **{f"{name}, later": partial(sparse_step, architecture=name, has_learned=True) for name in WITHOUT_K},
        "dense autograd": dense_step,
        "encoder product": encoder_product,
        "in bfloat16": partial(encoder_product, dtype=torch.bfloat16),
    }
    steps = {name: make(x, size) for name, make in makers.items()}
    for step in steps.values():
        # The second one is the first whose way is chosen by how many codes there are.
        step()
        step()
    best = {name: min(times) for name, times in rounds(steps, options.rounds).items()}
    place = options.device if x.device.type != "cpu" else f"{options.threads} threads"
    print(f"d_in {size.d_in}, d_sae {size.d_sae}, k {K}, batch {batch}, {place}, float32")
    print(f"{'':16}{'ms a batch':>12}{'tokens/s':>12}{'of the dense step':>20}{'of the product':>17}")
    for name, took in best.items():
        ratios = f"{took / best['dense autograd']:>19.2f}x{took / best['encoder product']:>16.2f}x"
        print(f"{name:16}{took * 1e3:>12.0f}{batch / took:>12.0f}{ratios}")


def rounds(steps: dict[str, Callable[[], object]], n: int) -> dict[str, list[float]]:
    """Seconds of each step, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(n):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return times


if __name__ == "__main__":
    main()
