"""Tokens per second of one training step, beside the plain dense one and the encoder product alone.

    python tests/bench/bench_train.py [--threads 2] [--rounds 5]

The three take turns, and the best round of each counts, so that a busy machine slows all alike.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.sae import SaeSettings
from circuitcli.training.architectures.registry import new_student
from circuitcli.training.architectures.student import Lesson, Moments
from circuitcli.training.learner import Learner, Pace
from circuitcli.training.schedule import Schedule

D_IN, D_SAE, K, BATCH = 576, 4608, 32, 4096
HOOK = HookPoint(0, "resid")
ARCHITECTURES = ("batchtopk", "matryoshka", "jumprelu", "relu", "gated")


def learner_of(x: Tensor, architecture: str = "topk") -> Learner:
    """As `circuit train` makes it."""
    lesson = Lesson(SaeSettings(architecture=architecture, k=K), D_SAE, auxk_weight=1 / 32, dead_tokens=10**9)
    student = new_student((HOOK,), {HOOK: x}, lesson, {HOOK: Moments(D_IN, D_IN)})
    return Learner(student, Pace(Schedule(1e-3, 1000, 0.05, 0.3), clip=1.0))


def sparse_step(x: Tensor, architecture: str = "topk") -> Callable[[], object]:
    """A step as `circuit train` takes it."""
    learner = learner_of(x, architecture)
    return lambda: learner.step({HOOK: x}, index=100)


def dense_step(x: Tensor) -> Callable[[], object]:
    """The definition, with plain autograd and Adam as they come."""
    sae = TopKSae(SaeConfig(HOOK, D_IN, D_SAE), k=K)
    with torch.no_grad():
        torch.nn.init.normal_(sae.W_dec)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)
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


def encoder_product(x: Tensor) -> Callable[[], object]:
    """What no exact TopK step can avoid."""
    W_enc = torch.randn(D_IN, D_SAE)
    return lambda: x @ W_enc


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    makers = {
        "circuit train": sparse_step,
        **{name: partial(sparse_step, architecture=name) for name in ARCHITECTURES},
        "dense autograd": dense_step,
        "encoder product": encoder_product,
    }
    steps = {name: make(x) for name, make in makers.items()}
    for step in steps.values():
        step()
    best = {name: min(times) for name, times in rounds(steps, options.rounds).items()}
    print(f"d_in {D_IN}, d_sae {D_SAE}, k {K}, batch {BATCH}, {options.threads} threads, float32")
    print(f"{'':16}{'ms a batch':>12}{'tokens/s':>12}{'of the dense step':>20}{'of the product':>17}")
    for name, took in best.items():
        ratios = f"{took / best['dense autograd']:>19.2f}x{took / best['encoder product']:>16.2f}x"
        print(f"{name:16}{took * 1e3:>12.0f}{BATCH / took:>12.0f}{ratios}")


def rounds(steps: dict[str, Callable[[], object]], n: int) -> dict[str, list[float]]:
    """Seconds of each step, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(n):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return times


if __name__ == "__main__":
    main()
