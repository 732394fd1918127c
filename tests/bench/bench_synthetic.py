"""Planted features beside sae-lens: rows per second, their moments, and what SAEs of both libraries find at equal rows.

    python -m tests.bench.bench_synthetic [--shrink 4] [--rounds 3] [--threads 1]
    python -m tests.bench.bench_synthetic --train 500000 [--architectures topk batchtopk matryoshka jumprelu]

Both generators have the same features, rates, factors and hierarchy, and draw batches of 1,024 in turn. Times are those
of the processor, not of the clock, so that what else the machine does counts for neither. ``--train``: each library
trains through its own trainer on such rows, in batches of 1,024, ours from our defaults, theirs from SynthSAEBench's
(Adam at 3e-4, constant); the same code measures both on the same other rows.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.allocator import keep_freed_memory
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.toys.synthetic.recipe import Recipe
from circuitcli.toys.synthetic.scores import Found, found
from circuitcli.toys.synthetic.training import HOOK, MOMENT_ROWS, Moments, planted, settings_for, trained
from circuitcli.toys.synthetic.world import World

BATCH, EVAL_BATCHES, PIECE = 1024, 32, 2048
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu")


def their_generator(world: World) -> Any:
    """sae-lens's generator of the same features."""
    from sae_lens.synthetic import ActivationGenerator, HierarchyConfig, generate_hierarchy

    recipe = world.recipe
    hierarchy = generate_hierarchy(
        recipe.n_features,
        HierarchyConfig(
            total_root_nodes=recipe.trees,
            branching_factor=recipe.branching,
            max_depth=recipe.depth,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
    )
    return ActivationGenerator(
        recipe.n_features,
        recipe.rates_beside_parents().float(),
        world.spread,
        world.mean,
        modify_activations=hierarchy.modifier,
        correlation_matrix=(world.factors, world.own.square()),
    )


def raced(world: World, *, rounds: int) -> None:
    """Print rows per second of both, and how far their moments are apart in standard errors."""
    theirs, seconds = their_generator(world), [0.0, 0.0]
    drawn: list[list[Tensor]] = [[], []]
    for index in range(rounds + 1):
        start = time.process_time()
        features = theirs.sample(BATCH)
        _ = features @ world.directions + world.bias
        middle = time.process_time()
        for part in range(8):
            _, sample = world.batch("bench", 8 * index + part, BATCH)
        end = time.process_time()
        dense = torch.zeros(BATCH, world.recipe.n_features)
        dense[sample.rows, sample.features] = sample.strengths
        drawn[0].append(features)
        drawn[1].append(dense)
        if index:
            seconds = [seconds[0] + middle - start, seconds[1] + (end - middle) / 8]
    rates = [rounds * BATCH / spent for spent in seconds]
    print(f"rows per processor second: sae-lens {rates[0]:,.0f}, ours {rates[1]:,.0f}, {rates[1] / rates[0]:.0f} times")
    both = [torch.cat(parts) for parts in drawn]
    for name, of in (("active", lambda x: (x > 0).float()), ("strength", lambda x: x)):
        a, b = (of(one) for one in both)
        error = ((a.var(dim=0) + b.var(dim=0)) / len(a)).sqrt()
        gaps = ((a.mean(dim=0) - b.mean(dim=0)) / error)[error > 0]
        sums = " and ".join(f"{float(one.sum(dim=1).mean()):.3f}" for one in (a, b))
        print(f"{name} a row: {sums}; of each feature: gaps of {float(gaps.std()):.2f} standard errors")


class Theirs(SparseCoder):
    """An SAE of sae-lens, as its own evaluation uses it."""

    architecture = "sae-lens"

    def __init__(self, sae: Any) -> None:
        d_sae, d_in = sae.W_dec.shape
        super().__init__(SaeConfig(HOOK, d_in, d_sae))
        self.sae = sae.eval()
        self.W_dec.data = sae.W_dec.data.clone()

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.sae.encode(x)

    def reconstruction(
        self, x: Float[Tensor, "*batch d_in"], codes: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_in"]:
        return self.sae.decode(codes)


def their_coder(architecture: str, world: World, *, d_sae: int, k: int, samples: int) -> Theirs:
    from sae_lens import BatchTopKTrainingSAEConfig, JumpReLUTrainingSAEConfig, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_in = world.recipe.d_model
    widths = [d_sae // 32, d_sae // 16, d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    config = {
        # Without sparse codes and the rescaling by decoder norms, whose gradient torch 2.13 lacks on the CPU.
        "topk": lambda: TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, use_sparse_activations=False),
        "batchtopk": lambda: BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k),
        "matryoshka": lambda: MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=d_in, d_sae=d_sae, k=k, matryoshka_widths=widths
        ),
        "jumprelu": lambda: JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=d_sae, target_l0=k),
    }[architecture]()
    torch.manual_seed(0)
    sae = get_sae_training_class(config.architecture())[0](config)
    trainer_config = SAETrainerConfig(
        total_training_samples=samples // BATCH * BATCH, train_batch_size_samples=BATCH, device="cpu"
    )
    trainer_config.lr_end = trainer_config.lr / 10
    draw = planted(world, BATCH)
    trainer = SAETrainer(cfg=trainer_config, sae=sae, data_provider=(draw(index) for index in range(2**40)))
    for index in range(samples // BATCH):
        trainer.step(draw(index))
        trainer.n_training_steps += 1
    return Theirs(trainer.sae)


def compared(world: World, architectures: list[str], *, samples: int) -> None:
    """Print what SAEs of both libraries found."""
    settings = Settings()
    settings = settings.model_copy(
        update={"synthetic": settings.synthetic.model_copy(update={"samples": samples, "shrink": world.recipe.shrink})}
    )
    moments = Moments.of(world.batch("moments", 0, MOMENT_ROWS)[0])
    print(f"{'':24}{'F1':>8}{'MCC':>8}{'explained':>11}{'L0':>8}{'silent':>8}{'seconds':>9}")
    for architecture in architectures:
        asked = settings_for(settings, architecture)
        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            ours = trained(asked, planted(world, BATCH), moments, folder=Path(folder), fingerprint="bench")
        _told(f"{architecture}, ours", _found(ours, world), time.perf_counter() - start)
        start = time.perf_counter()
        theirs = their_coder(architecture, world, d_sae=asked.sae.d_sae or 0, k=asked.sae.k, samples=samples)
        _told(f"{architecture}, sae-lens", _found(theirs, world), time.perf_counter() - start)


def _found(coder: SparseCoder, world: World) -> Found:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(EVAL_BATCHES):
            x, sample = world.batch("held out", index, PIECE)
            yield x, sample.is_active(world.recipe.n_features)

    return found(coder, world.directions, batches())


def _told(name: str, one: Found, seconds: float) -> None:
    numbers = f"{one.detection.f1:>8.3f}{one.mcc:>8.3f}{one.explained_variance or 0:>11.3f}{one.l0:>8.2f}"
    print(f"{name:24}{numbers}{one.silent:>8.3f}{seconds:>9.0f}", flush=True)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--train", type=int)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(options.threads)
    world = World.of(Recipe(shrink=options.shrink), seed=0)
    if options.train:
        compared(world, options.architectures, samples=options.train)
    else:
        raced(world, rounds=options.rounds)


if __name__ == "__main__":
    main()
