"""SAEs trained on planted features by the trainer of `circuit train`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.toys.synthetic.recipe import FULL_BATCH, FULL_K, FULL_WIDTH
from circuitcli.toys.synthetic.world import World, stream
from circuitcli.training.alone import train_alone
from circuitcli.training.architectures.trainable import ActivationMoments, Batch

# Planted activations are of no model; files and records name a hook point all the same.
HOOK = HookPoint(0, "resid")
# Rows from which means and covariances are taken.
MOMENT_ROWS = 65_536
Draw = Callable[[int], Float[Tensor, "row d_model"]]


@dataclass
class SyntheticBatches:
    """The training batches of a stream, made when they are asked for."""

    draw: Draw
    n_steps: int
    batch_size: int

    def from_step(self, step: int) -> Iterator[Batch]:
        """See `SizedBatches`."""
        for index in range(step, self.n_steps):
            yield {HOOK: self.draw(index)}


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of activations, float64."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row d"]) -> "Moments":
        """Those of some rows."""
        x = rows.double()
        mean = x.mean(dim=0)
        return cls(mean, (x - mean).T @ (x - mean) / len(x))

    @property
    def activations(self) -> ActivationMoments:
        """As training wants them."""
        variance = float(self.covariance.diagonal().sum())
        return ActivationMoments(variance + float(self.mean.square().sum()), variance)

    def noise(self, seed: int, batch_size: int) -> Draw:
        """Batches of normal rows of this mean and covariance: nothing is planted in them."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root, mean = (vectors * values.clamp_min(0.0).sqrt()).T.float(), self.mean.float()

        def draw(index: int) -> Float[Tensor, "row d_model"]:
            return torch.randn(batch_size, len(mean), generator=stream(seed, "noise", index)) @ root + mean

        return draw


def planted(world: World, batch_size: int) -> Draw:
    """Batches of the world's own rows."""
    return lambda index: world.batch("train", index, batch_size)[0]


def batch_rows(settings: Settings) -> int:
    """Rows in one step: as many as the benchmark's authors take, unless the settings say otherwise."""
    return settings.train.batch_size or FULL_BATCH


def settings_for(settings: Settings, architecture: str) -> Settings:
    """The settings of one architecture on the benchmark."""
    synthetic = settings.synthetic
    d_sae = synthetic.d_sae or FULL_WIDTH // synthetic.shrink
    k = synthetic.k or max(1, round(FULL_K / synthetic.shrink))
    sae = settings.sae.model_copy(update={"architecture": architecture, "d_sae": d_sae, "k": k})
    return settings.model_copy(update={"sae": sae})


def trained(
    settings: Settings,
    draw: Draw,
    moments: Moments,
    *,
    folder: Path,
    fingerprint: str,
    is_decoder_frozen: bool = False,
) -> SparseCoder:
    """The SAE that these settings make of such batches, from a checkpoint in ``folder`` if there is one.

    Raises CircuitError if a loss stops being finite.
    """
    batch_size = batch_rows(settings)
    return train_alone(
        settings,
        HOOK,
        SyntheticBatches(draw, max(1, settings.synthetic.samples // batch_size), batch_size),
        moments.activations,
        folder=folder,
        fingerprint=fingerprint,
        is_decoder_frozen=is_decoder_frozen,
    )
