"""Autoencoders of a sweep over planted features side by side, beside one training after the other and bare products.

    python -m tests.bench.bench_toy [--threads 2] [--steps 2000] [--peer SCRIPT] [--set toy.d_model=256 ...]

One after the other is the plain training of each: batches of its own, autograd, ``torch.optim.Adam`` as it comes. The
products are the five of dense training (codes, reconstructions, gradients by codes, decoder and encoder) of all
autoencoders, and the first of them alone. They take turns with the stack, which trains from the first step to the last:
its codes become sparse meanwhile, on which the others' time does not depend. Times of the processor count what else
goes on there little, but all threads together: on several threads of a quiet machine the clock's time is what is saved.
With --peer the authors' own script (see `toy_peer`) trains the same autoencoders one after the other in the same run.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from circuitcli.allocator import keep_freed_memory
from circuitcli.settings.sources import load
from circuitcli.settings.toy import ToySettings
from circuitcli.toys.ground_truth import GroundTruth, plant
from circuitcli.toys.stack import Dictionary, Stack, models
from tests.bench.toy_peer import LONG, SHORT, Peer

# Turns of the others, and their steps in one.
TURNS, STEPS = 10, 3


class Alone(nn.Module):
    """One autoencoder by itself."""

    def __init__(self, first: Dictionary) -> None:
        super().__init__()
        self.encoder = nn.Linear(first.W_enc.shape[1], len(first.W_enc))
        self.decoder = nn.Linear(len(first.W_enc), first.W_enc.shape[1], bias=False)
        with torch.no_grad():
            self.encoder.weight.copy_(first.W_enc)
            self.encoder.bias.copy_(first.b_enc)
            self.decoder.weight.copy_(first.W_dec.T)

    def loss(self, x: Tensor, l1_weight: float) -> Tensor:
        """The mean squared error and the penalty."""
        codes = torch.relu(self.encoder(x))
        self.decoder.weight.data = nn.functional.normalize(self.decoder.weight.data, dim=0)
        return (self.decoder(codes) - x).square().mean() + l1_weight * codes.abs().sum(1).mean()


@dataclass
class Clock:
    """Seconds of the processor and of the clock by what they were spent on, and how often it was done."""

    seconds: dict[str, float] = field(default_factory=dict)
    passed: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], object]) -> None:
        """Do it, and count it."""
        begun, since = time.process_time(), time.perf_counter()
        work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begun
        self.passed[name] = self.passed.get(name, 0.0) + time.perf_counter() - since
        self.counts[name] = self.counts.get(name, 0) + 1

    def ms(self, name: str) -> float:
        """Milliseconds of the processor for one."""
        return 1000 * self.seconds[name] / self.counts[name]

    def clock_ms(self, name: str) -> float:
        """Milliseconds that pass with one."""
        return 1000 * self.passed[name] / self.counts[name]


def one_after_the_other(stack: Stack, truth: GroundTruth) -> Callable[[], None]:
    """A step of each autoencoder by itself."""
    alone = [Alone(own) for _, own in stack.dictionaries()]
    adams = [torch.optim.Adam(one.parameters(), lr=stack.settings.learning_rate) for one in alone]

    def step() -> None:
        for one, adam, model in zip(alone, adams, stack.models, strict=True):
            loss = one.loss(truth.batch(0).x, model.l1_weight / model.width)
            adam.zero_grad()
            loss.backward()
            adam.step()

    return step


def five_products(stack: Stack, x: Tensor) -> Callable[[], None]:
    """The bare dense products of a step of all autoencoders."""
    parts = [own for _, own in stack.dictionaries()]
    codes = [torch.rand(len(own.W_enc), len(x)) for own in parts]
    error = torch.rand_like(x)

    def step() -> None:
        for own, c in zip(parts, codes, strict=True):
            torch.mm(own.W_enc, x.T)
            torch.mm(c.T, own.W_dec)
            torch.mm(own.W_dec, error.T)
            torch.mm(c, error)
            torch.mm(c, x)

    return step


def time_peer(peer: Peer, stack: Stack, clock: Clock) -> None:
    """Count a step of each of the script's trainings: what the longer ones take above the shorter ones, a step."""
    of_lengths = Clock()
    for steps in (SHORT, LONG, SHORT, LONG):
        for model in stack.models:
            of_lengths.time(str(steps), peer.training(model, steps))
    for mine, theirs in ((clock.seconds, of_lengths.seconds), (clock.passed, of_lengths.passed)):
        mine["peer"] = (theirs[str(LONG)] - theirs[str(SHORT)]) / (LONG - SHORT) / 2
    clock.counts["peer"] = 1


def measured(settings: ToySettings, *, seed: int, script: Path | None) -> tuple[Clock, dict[int, float]]:
    """Times of all, and the stack's milliseconds a step in each tenth of its training."""
    truth, clock, tenths = plant(settings, seed=seed), Clock(), {}
    stack = Stack(models(settings), settings, seed=seed, device=torch.device("cpu"))
    others = one_after_the_other(stack, truth)
    others()
    each = settings.steps // TURNS
    for turn in range(TURNS):
        before = clock.seconds.get("stack", 0.0)
        for _ in range(each):
            clock.time("stack", lambda: stack.step(truth.batch(stack.done).x))
        tenths[stack.done] = 1000 * (clock.seconds["stack"] - before) / each
        x = truth.batch(turn).x
        bare, whole = five_products(stack, x), stack.tensors
        for _ in range(STEPS):
            clock.time("others", others)
            clock.time("products", bare)
            clock.time("encoder", lambda: torch.mm(whole.W_enc, x.T))  # noqa: B023
        if script is not None and turn == TURNS // 2:
            time_peer(Peer(script, settings), stack, clock)
    return clock, tenths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--peer", type=Path, metavar="SCRIPT", help="replicate_toy_models.py of HoagyC/sparse_coding")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    settings = load(assignments=[*options.set, f"toy.steps={options.steps}"], environment={}).settings
    clock, tenths = measured(settings.toy, seed=settings.seed, script=options.peer)
    chosen = models(settings.toy)
    widths = " ".join(f"{width:,}" for width in dict.fromkeys(model.width for model in chosen))
    print(f"{len(chosen)} autoencoders of {widths} features, d {settings.toy.d_model}, {options.steps:,} steps\n")
    print("| | processor ms a step of all | ratio | clock ms | ratio |\n|---|---|---|---|---|")
    names = {
        "peer": "the authors' script, one after the other",
        "others": "one after the other",
        "products": "the five dense products alone",
        "stack": "side by side (`circuit toy`)",
        "encoder": "the encoder's product alone",
    }
    for name in [name for name in names if name in clock.counts]:
        own, passed = clock.ms(name), clock.clock_ms(name)
        ratios = clock.ms("others") / own, clock.clock_ms("others") / passed
        print(f"| {names[name]} | {own:.1f} | {ratios[0]:.1f}x | {passed:.1f} | {ratios[1]:.1f}x |")
    print("\nside by side, by step: " + ", ".join(f"{step:,}: {ms:.1f} ms" for step, ms in tenths.items()))


if __name__ == "__main__":
    main()
