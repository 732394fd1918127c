"""One training step of a cross-layer transcoder beside the plain dense one, and what no step can avoid.

    python -m tests.bench.bench_clt [--layers 4] [--threads 2] [--rounds 5]

They take turns, and the best round of each counts. The floor: pre-activations of all features, in float32; sums over k
codes a token for each of what a layer writes, once forward and twice back, and once for the encoder; and Adam, which
reads and writes each weight's four numbers once. Memory is the peak of a process that does nothing else, over what it
has before: weights, gradients, moments and the batch are part of it.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from circuitcli.allocator import keep_freed_memory
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.sae import SaeSettings
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments, TrainingConfig
from circuitcli.training.memory import peak_process_bytes
from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig
from circuitcli.training.schedule import LearningRateSchedule

D, D_SAE, K, BATCH, LAYERS = 576, 4608, 32, 4096, 4
Batch = dict[HookPoint, Tensor]
Step = Callable[[], object]


def batch_of(n_layers: int, n_tokens: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    hooks = [HookPoint(layer, site) for site in ("mlp_in", "mlp") for layer in range(n_layers)]
    return {hook: torch.randn(n_tokens, D, generator=generator) for hook in hooks}


def sparse_step(batch: Batch, *, autocast: bool = False) -> Step:
    """A step as `circuit train` takes it."""
    config = TrainingConfig(
        SaeSettings(architecture="clt", k=K), D_SAE, auxk_weight=1 / 32, dead_tokens=10**9, autocast=autocast
    )
    clt = new_trainable(tuple(batch), batch, config, dict.fromkeys(batch, ActivationMoments(D, D)))
    optimiser = CoderOptimiser(clt, OptimiserConfig(LearningRateSchedule(1e-6, 1000, 0.05, 0.3), clip=1.0))
    return lambda: optimiser.step(batch, index=100)


def dense_step(batch: Batch) -> Step:
    """The definition, with plain autograd and Adam as they come."""
    hooks, n = list(batch), len(batch) // 2
    encoders = [nn.Parameter(torch.randn(D, D_SAE) / D**0.5) for _ in range(n)]
    biases = [nn.Parameter(torch.zeros(D_SAE)) for _ in range(n)]
    decoders = [[nn.Parameter(torch.randn(D_SAE, D) / D_SAE) for _ in range(n - layer)] for layer in range(n)]
    offsets = [nn.Parameter(torch.zeros(D)) for _ in range(n)]
    parameters = [*encoders, *biases, *(one for row in decoders for one in row), *offsets]
    optimizer = torch.optim.Adam(parameters, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        codes = []
        for hook, encoder, bias in zip(hooks[:n], encoders, biases, strict=True):
            pre = batch[hook] @ encoder + bias
            values, places = pre.topk(K, dim=1)
            codes.append(torch.zeros_like(pre).scatter(1, places, values.relu()))
        loss = torch.zeros(())
        for layer, hook in enumerate(hooks[n:]):
            total = offsets[layer]
            for below in range(layer + 1):
                total = total + codes[below] @ decoders[below][layer - below]
            loss = loss + (batch[hook] - total).square().sum(dim=1).mean() / D
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for row in decoders:
                norm = torch.cat(row, dim=1).norm(dim=1, keepdim=True)
                for decoder in row:
                    decoder /= norm

    return step


def encoder_products(batch: Batch) -> Step:
    """The pre-activations of all layers."""
    reads = list(batch.values())[: len(batch) // 2]
    encoders = [torch.randn(D, D_SAE) for _ in reads]
    out = torch.empty(len(reads[0]), D_SAE)

    def step() -> None:
        for x, encoder in zip(reads, encoders, strict=True):
            torch.mm(x, encoder, out=out)

    return step


def adam(batch: Batch) -> Step:
    """The optimiser's step alone."""
    parameters = [nn.Parameter(torch.randn(n_parameters(len(batch) // 2)))]
    parameters[0].grad = torch.randn_like(parameters[0])
    return torch.optim.Adam(parameters, lr=1e-6, fused=True).step


def n_parameters(n_layers: int) -> int:
    """Weights of encoders and decoders."""
    return D * D_SAE * (n_layers + n_layers * (n_layers + 1) // 2)


MAKERS: dict[str, Callable[[Batch], Step]] = {
    "encoder products": encoder_products,
    "Adam": adam,
    "circuit train": sparse_step,
    "with autocast": partial(sparse_step, autocast=True),
    "plain dense autograd": dense_step,
}


def floor(n_layers: int) -> str:
    """Operations of a token, bytes of a step."""
    written = n_layers * (n_layers + 1) // 2
    encoding, sums = 2 * D * D_SAE * n_layers, 2 * K * D * (3 * written + n_layers)
    traffic = 7 * 4 * n_parameters(n_layers)
    return (
        f"floor: {encoding / 1e6:.1f} + {sums / 1e6:.1f} million operations a token (encoding, sparse sums); "
        f"Adam moves {traffic / 1e9:.2f} GB a step of {n_parameters(n_layers) / 1e6:.1f} million weights; "
        f"weights, gradients and moments take {16 * n_parameters(n_layers) / 1e9:.2f} GB"
    )


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Of a process that takes two of these steps, over what it had before."""
    words = [sys.executable, "-m", "tests.bench.bench_clt", "--peak", name]
    words += [f"--{word}={getattr(options, word)}" for word in ("layers", "batch", "threads")]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        before = peak_process_bytes()
        step = MAKERS[options.peak](batch_of(options.layers, options.batch))
        step()
        step()
        print(peak_process_bytes() - before)
        return
    batch = batch_of(options.layers, options.batch)
    steps = {name: make(batch) for name, make in MAKERS.items()}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    least = best["encoder products"] + best["Adam"]
    print(f"{options.layers} layers of width {D}, {D_SAE} features each, k {K}, batches of {options.batch}")
    print(floor(options.layers))
    print("| | tokens/s | time, of the first two together | peak memory |\n|---|---|---|---|")
    for name, took in best.items():
        memory = peak_bytes(name, options) / 2**20
        print(f"| {name} | {options.batch / took:,.0f} | {took / least:.2f}x | {memory:,.0f} MiB |")


if __name__ == "__main__":
    main()
