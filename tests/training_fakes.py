"""Planted activations, and batches of them in memory with the interface of the real ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.settings.sae import SaeSettings
from circuitcli.training.architectures.descriptions import DESCRIPTIONS, Each, Pairs
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments, TrainingConfig
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import MetricsLog
from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig
from circuitcli.training.schedule import LearningRateSchedule
from circuitcli.training.trainer import Trainer

D_IN, N_PLANTED, ACTIVE = 16, 24, 2
# Architectures of which each coder learns alone.
SINGLE = [name for name, about in DESCRIPTIONS.items() if type(about.layout) in (Each, Pairs)]


def planted(n_rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that are sums of two of 24 unit vectors, with random positive weights, plus an offset; and the vectors."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(N_PLANTED, D_IN, generator=generator), dim=1)
    offset = torch.randn(D_IN, generator=generator)
    chosen = torch.rand(n_rows, N_PLANTED, generator=generator).argsort(dim=1)[:, :ACTIVE]
    weights = 3 + 3 * torch.rand(n_rows, ACTIVE, generator=generator)
    return torch.zeros(n_rows, N_PLANTED).scatter(1, chosen, weights) @ features + offset, features


@dataclass
class MemoryBatches:
    """Random batches of rows in memory; a batch depends on the seed and the step only."""

    rows: dict[HookPoint, Tensor]
    batch_size: int
    n_steps: int
    seed: int = 0

    def from_step(self, step: int) -> Iterator[dict[HookPoint, Tensor]]:
        for index in range(step, self.n_steps):
            generator = torch.Generator().manual_seed(self.seed * 100_003 + index)
            n_rows = len(next(iter(self.rows.values())))
            chosen = torch.randint(0, n_rows, (self.batch_size,), generator=generator)
            yield {hook: rows[chosen] for hook, rows in self.rows.items()}


def moments(rows: Tensor) -> ActivationMoments:
    squares = float(rows.double().square().sum(dim=1).mean())
    return ActivationMoments(squares, squares - float(rows.double().mean(dim=0).square().sum()))


@dataclass(frozen=True)
class Recipe:
    """What a trainable is told, and how fast it moves."""

    config: TrainingConfig
    optimiser_config: OptimiserConfig


def recipe(n_steps: int, *, d_sae: int = 48, peak: float = 0.01, clip: float = 1.0, **changes) -> Recipe:
    config = {"auxk_weight": 1 / 32, "dead_tokens": 2000, "seed": 0, "autocast": False}
    config |= {name: changes.pop(name) for name in list(changes) if name in config}
    settings = SaeSettings(**({"k": ACTIVE} | changes))
    return Recipe(
        TrainingConfig(settings, d_sae, **config), OptimiserConfig(LearningRateSchedule(peak, n_steps, 0.05, 0.3), clip)
    )


def optimiser(
    hook: HookPoint, rows: Tensor, made: Recipe, *, target: tuple[HookPoint, Tensor] | None = None
) -> CoderOptimiser:
    """An optimiser at the hook point, or of a transcoder from it to a target."""
    given = {hook: rows} | ({} if target is None else {target[0]: target[1]})
    first = {place: own[:256] for place, own in given.items()}
    trainable = new_trainable(tuple(given), first, made.config, {place: moments(own) for place, own in given.items()})
    return CoderOptimiser(trainable, made.optimiser_config)


def trainer(
    directory: Path, rows: dict[HookPoint, Tensor], *, n_steps: int, batch_size: int = 64, checkpoint_steps: int = 7
) -> Trainer:
    """A trainer as the stage puts it together."""
    return Trainer(
        [optimiser(hook, own, recipe(n_steps)) for hook, own in rows.items()],
        MemoryBatches(rows, batch_size, n_steps),
        batch_size=batch_size,
        checkpoints=Checkpoints(directory / "checkpoint", "test"),
        checkpoint_steps=checkpoint_steps,
        logs={str(hook): MetricsLog(directory / str(hook) / "metrics.jsonl") for hook in rows},
    )


def trained(rows: Tensor, made: Recipe, *, batch_size: int = 256) -> CoderOptimiser:
    """An SAE trained on the rows to the end of its schedule."""
    hook = HookPoint(1, "resid")
    return fully_trained(optimiser(hook, rows, made), {hook: rows}, batch_size=batch_size)


def fully_trained(trainable: CoderOptimiser, rows: dict[HookPoint, Tensor], *, batch_size: int = 256) -> CoderOptimiser:
    """The optimiser at the end of its schedule."""
    batches = MemoryBatches(rows, batch_size, trainable.config.schedule.n_steps)
    for index, batch in enumerate(batches.from_step(0)):
        trainable.step(batch, index=index)
    for batch in islice(batches.from_step(0), 8):
        trainable.trainable.calibrate(batch, n_tokens=8 * batch_size)
    return trainable
