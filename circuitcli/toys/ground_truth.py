"""Activations that are sums of a few planted features, known by direction, probability and strength.

A batch follows from the seed and its number alone, so that what is broken off goes on with the same numbers.
Source: Sharkey, Braun and Millidge, "Taking features out of superposition with sparse autoencoders", December 2022.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.settings.toy import ToySettings, check

# Batches to learn from and batches to be measured on never meet.
TRAINING, MEASURING = 0, 1
_FEATURES, _CORRELATION = 2, 3
# By how much more than needed the correlations' smallest eigenvalue is lifted, as in the authors' code.
_LIFT = 1.001


@dataclass(frozen=True)
class Drawn:
    """One batch: its activations, and the active features behind them, example after example."""

    x: Float[Tensor, "batch d_model"]
    examples: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    strengths: Float[Tensor, " entries"]


@dataclass(frozen=True)
class GroundTruth:
    """The planted features. factor: the Cholesky factor of the correlations, None where there are none."""

    settings: ToySettings
    seed: int
    directions: Float[Tensor, "feature d_model"]
    probabilities: Float[Tensor, " feature"]
    factor: Float[Tensor, "feature feature"] | None

    def batch(self, index: int, *, stream: int = TRAINING) -> Drawn:
        """The batch of this number, in float32 on the CPU."""
        source = torch.Generator().manual_seed(_mixed(self.seed, stream, index))
        active = self._active(source)
        examples, features = active.nonzero(as_tuple=True)
        strengths = torch.rand(len(features), generator=source)
        if self.settings.correlation == "batches":
            examples, features, strengths = _filled(active, examples, features, strengths, source)
        if self.settings.strength == "product":
            strengths = strengths * torch.rand(len(features), generator=source)
        starts = torch.searchsorted(examples, torch.arange(len(active)))
        x = F.embedding_bag(features, self.directions, starts, mode="sum", per_sample_weights=strengths)
        if self.settings.noise:
            x = x + self.settings.noise * torch.randn(x.shape, generator=source)
        return Drawn(x, examples, features, strengths)

    def _active(self, source: torch.Generator) -> Tensor:
        n, n_features = self.settings.batch_size, len(self.probabilities)
        if self.factor is None:
            return torch.rand(n, n_features, generator=source) < self.probabilities
        if self.settings.correlation == "batches":
            return torch.rand(n, n_features, generator=source) <= self._probabilities_of_a_batch(source)
        normal = torch.randn(n, n_features, generator=source) @ self.factor.T
        return normal < torch.special.ndtri(self.probabilities.double()).float()

    def _probabilities_of_a_batch(self, source: torch.Generator) -> Tensor:
        assert self.factor is not None
        normal = self.factor @ torch.randn(len(self.factor), generator=source)
        raw = torch.special.ndtr(normal) * _decay(self.settings).float()
        return raw * (self.settings.n_active / len(raw) / raw.mean())


def plant(settings: ToySettings, *, seed: int) -> GroundTruth:
    """The features of a seed. Raises SettingsError if more of them are to be active than can be."""
    source = torch.Generator().manual_seed(_mixed(seed, _FEATURES, 0))
    directions = torch.randn(settings.n_features, settings.d_model, generator=source)
    factor = None if settings.correlation == "none" else torch.linalg.cholesky(correlations(settings, seed=seed))
    return GroundTruth(
        settings,
        seed,
        F.normalize(directions, dim=1),
        probabilities(settings).float(),
        None if factor is None else factor.float(),
    )


def probabilities(settings: ToySettings) -> Float[Tensor, " feature"]:
    """How often each feature is active, in float64; they add up to ``n_active``. Raises SettingsError above 1."""
    check(settings)
    decay = _decay(settings)
    return settings.n_active * decay / decay.sum()


def _decay(settings: ToySettings) -> Tensor:
    return settings.decay ** torch.arange(settings.n_features, dtype=torch.float64)


def correlations(settings: ToySettings, *, seed: int) -> Float[Tensor, "feature feature"]:
    """The matrix from which features are drawn together, in float64.

    The mean of a uniform matrix and its transpose, lifted along the diagonal until it is positive definite; then, but
    for whole batches, scaled to a diagonal of ones, which the authors' code leaves out: there its normal numbers have a
    variance of about ten (512 features), so that most features are all but off or all but certain in a batch.
    """
    source = torch.Generator().manual_seed(_mixed(seed, _CORRELATION, 0))
    uniform = torch.rand(settings.n_features, settings.n_features, generator=source, dtype=torch.float64)
    matrix = (uniform + uniform.T) / 2
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    if lowest < 0:
        matrix.diagonal().add_(_LIFT * -lowest)
    if settings.correlation == "batches":
        return matrix
    scale = matrix.diagonal().rsqrt()
    return scale[:, None] * matrix * scale


def _filled(
    active: Tensor, examples: Tensor, features: Tensor, strengths: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries, with one random feature at full strength in each example that had none."""
    empty = (~active.any(dim=1)).nonzero()[:, 0]
    chosen = torch.randint(active.shape[1], (len(empty),), generator=source)
    examples, order = torch.cat([examples, empty]).sort(stable=True)
    return (
        examples,
        torch.cat([features, chosen])[order],
        torch.cat([strengths, torch.ones(len(empty))])[order],
    )


def _mixed(*numbers: int) -> int:
    """One seed for several numbers, such that neighbours have nothing in common."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def seeded(seed: int, width: int) -> torch.Generator:
    """The random numbers for the first weights of a dictionary of this width."""
    return torch.Generator().manual_seed(_mixed(seed, 4, width))
