"""One SAE trained by itself on any batches, with the settings, checkpoints and calibration of `circuit train`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments, Batch, TrainingConfig
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import METRICS, MetricsLog
from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig
from circuitcli.training.plan import Plan, default_dead_tokens, schedule, width
from circuitcli.training.trainer import Trainer
from circuitcli.training.untrained import CALIBRATION_TOKENS


@runtime_checkable
class SizedBatches(Protocol):
    """A fixed sequence of batches of one size that can be entered at any step."""

    n_steps: int
    batch_size: int

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of this step and all later ones."""
        ...


@dataclass
class RowBatches:
    """Rows in memory, in an order of their own in each epoch, float32."""

    hook: HookPoint
    rows: Float[Tensor, "row d_model"]
    n_steps: int
    batch_size: int
    seed: int

    def from_step(self, step: int) -> Iterator[Batch]:
        """See `SizedBatches`. There is at least one batch in the rows."""
        in_epoch = len(self.rows) // self.batch_size
        for index in range(step, self.n_steps):
            epoch, place = divmod(index, in_epoch)
            if place == 0 or index == step:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(len(self.rows), generator=generator)
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield {self.hook: self.rows[chosen].float()}


def train_alone(
    settings: Settings,
    hook: HookPoint,
    batches: SizedBatches,
    moments: ActivationMoments,
    *,
    folder: Path,
    fingerprint: str,
    is_decoder_frozen: bool = False,
) -> SparseCoder:
    """The SAE of ``sae.architecture`` that these batches make, from a checkpoint in ``folder`` if there is one.

    is_decoder_frozen: its decoder stays as it began, random. Raises CircuitError if a loss stops being finite.
    """
    batch_size, tokens = batches.batch_size, batches.n_steps * batches.batch_size
    plan = Plan(tokens, tokens, batch_size, batches.n_steps, settings.train.dead_tokens or default_dead_tokens(tokens))
    first = next(iter(batches.from_step(0)))
    d_sae = width(settings, d_in=first[hook].shape[1])
    config = TrainingConfig(settings.sae, d_sae, settings.train.auxk_weight, plan.dead_tokens, settings.seed)
    trainable = new_trainable((hook,), first, config, {hook: moments})
    if is_decoder_frozen:
        trainable.get_parameter("sae.W_dec").requires_grad_(False)
    rates = schedule(settings, plan, d_sae=d_sae)
    optimiser = CoderOptimiser(trainable, OptimiserConfig(rates, settings.train.clip))
    Trainer(
        [optimiser],
        batches,
        batch_size=batch_size,
        checkpoints=Checkpoints(folder, fingerprint),
        checkpoint_steps=max(1, settings.train.checkpoint_tokens // batch_size),
        logs={str(hook): MetricsLog(folder / METRICS)},
    ).run()
    if trainable.needs_calibration:
        n_steps = min(batches.n_steps, max(1, CALIBRATION_TOKENS // batch_size))
        for _, batch in zip(range(n_steps), batches.from_step(0), strict=False):
            trainable.calibrate(batch, n_tokens=n_steps * batch_size)
    return optimiser.finished()[hook]
