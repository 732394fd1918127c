"""The planted features themselves: directions, strengths, and what makes them active together; and samples of them."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.toys.synthetic.normals import coarse_normals, exact_normals
from circuitcli.toys.synthetic.orthogonal import spread_out
from circuitcli.toys.synthetic.recipe import Recipe

# Normal numbers that are held at once.
_AT_ONCE = 2**23
# A feature's own share of what makes it active; the rest is shared with others.
_LEAST_OWN = 0.01


class Sample(NamedTuple):
    """Active features of some rows, row after row, and their strengths, which are above zero."""

    rows: Int[Tensor, " active"]
    features: Int[Tensor, " active"]
    strengths: Float[Tensor, " active"]
    n_rows: int

    def is_active(self, n_features: int) -> Bool[Tensor, "row feature"]:
        """For each row and feature whether it is active."""
        found = torch.zeros(self.n_rows, n_features, dtype=torch.bool)
        found[self.rows, self.features] = True
        return found


@dataclass(frozen=True)
class World:
    """Planted features as drawn from a recipe and a seed.

    directions: of length one. threshold: a feature is drawn where ``common @ factors[i] + own[i] * normal`` is above
    it, with ``common`` standard normal, one for all features of a row.
    """

    recipe: Recipe
    seed: int
    directions: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, " d_model"]
    factors: Float[Tensor, "feature rank"]
    own: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"]
    mean: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]

    @classmethod
    def of(cls, recipe: Recipe, *, seed: int) -> "World":
        """Draw the features. Takes a second at a quarter of the size, and a minute at the whole."""
        n, d = recipe.n_features, recipe.d_model
        generator = stream(seed, "world")
        raw = F.normalize(torch.randn(n, d, generator=generator), dim=1)
        bias = F.normalize(torch.randn(d, generator=generator), dim=0) * recipe.bias_norm
        factors = torch.randn(n, recipe.rank, generator=generator) * recipe.correlation
        # What is shared may not be all.
        shared = factors.square().sum(dim=1)
        factors *= ((1 - _LEAST_OWN) / shared).clamp_max(1.0).sqrt()[:, None]
        own = (1 - factors.square().sum(dim=1)).sqrt()
        spread = (recipe.spread_mean + recipe.spread_deviation * torch.randn(n, generator=generator)).abs()
        threshold = -torch.special.ndtri(recipe.rates_beside_parents()).float()
        return cls(
            recipe,
            seed,
            spread_out(raw, steps=recipe.orthogonal_steps, rate=recipe.orthogonal_rate),
            bias,
            factors,
            own,
            threshold,
            torch.linspace(recipe.strongest, recipe.weakest, n),
            spread,
        )

    def sample(self, n_rows: int, generator: torch.Generator) -> Sample:
        """So many independent rows. Children are drawn only where their parents are active."""
        size = max(1, _AT_ONCE // (self.recipe.n_features - self.recipe.n_in_trees + self.recipe.trees))
        parts = [self._sample(min(size, n_rows - first), generator, first) for first in range(0, n_rows, size)]
        rows, features, strengths = (torch.cat(column) for column in zip(*parts, strict=True))
        order = rows.argsort(stable=True)
        return Sample(rows[order], features[order], strengths[order], n_rows)

    def _sample(self, n_rows: int, generator: torch.Generator, first: int) -> tuple[Tensor, Tensor, Tensor]:
        common = torch.randn(n_rows, self.recipe.rank, generator=generator)
        rows, features, strengths = self._without_parents(common, generator)
        is_root = features < self.recipe.trees
        found = [(rows, features, strengths)]
        above = rows[is_root], features[is_root], strengths[is_root]
        for level, below in zip(self.recipe.levels, self.recipe.levels[1:], strict=False):
            above = self._children(common, above, below.start - level.start * self.recipe.branching, generator)
            found.append(above)
        rows, features, strengths = (torch.cat(column) for column in zip(*found, strict=True))
        return rows + first, features, strengths

    def _without_parents(self, common: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, features and strengths of the active roots and free features."""
        chosen = torch.cat(
            [torch.arange(self.recipe.trees), torch.arange(self.recipe.n_in_trees, self.recipe.n_features)]
        )
        # In units of what is each feature's own.
        own = self.own[chosen]
        factors, threshold = self.factors[chosen] / own[:, None], self.threshold[chosen] / own
        most, intervals = coarse_normals((len(common), len(chosen)), generator)
        reaches = (most.addmm_(common, factors.T) > threshold).flatten().numpy()
        rows, columns = (torch.from_numpy(part) for part in np.divmod(np.flatnonzero(reaches), len(chosen)))
        level = exact_normals(intervals[reaches], generator)
        level += torch.linalg.vecdot(common[rows], factors[columns])
        is_drawn = level > threshold[columns]
        rows, features = rows[is_drawn], chosen[columns[is_drawn]]
        strengths = self._strengths(features, generator)
        is_active = strengths > 0
        return rows[is_active], features[is_active], strengths[is_active]

    def _children(
        self, common: Tensor, above: tuple[Tensor, Tensor, Tensor], offset: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of active parents the one child that stays of those that are drawn, where any is.

        offset: what is added to ``branching`` times the parent to get its first child.
        """
        rows, parents, of_parents = above
        children = offset + parents[:, None] * self.recipe.branching + torch.arange(self.recipe.branching)
        level = torch.einsum("pcr,pr->pc", self.factors[children], common[rows])
        level += torch.randn(children.shape, generator=generator) * self.own[children]
        strengths = self._strengths(children, generator)
        is_active = (level > self.threshold[children]) & (strengths > 0)
        lots = torch.rand(children.shape, generator=generator).masked_fill_(~is_active, -1.0)
        winner = lots.argmax(dim=1, keepdim=True)
        scaled = strengths.gather(1, winner)[:, 0] * of_parents / self.mean[parents]
        stays = is_active.any(dim=1)
        return rows[stays], children.gather(1, winner)[stays, 0], scaled[stays]

    def _strengths(self, features: Int[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
        noise = torch.randn(features.shape, generator=generator)
        return (self.mean[features] + self.spread[features] * noise).relu_()

    def activations(self, sample: Sample) -> Float[Tensor, "row d_model"]:
        """The sums of the active features' directions times their strengths, and the bias."""
        counts = torch.bincount(sample.rows, minlength=sample.n_rows)
        starts = counts.cumsum(0) - counts
        summed = F.embedding_bag(
            sample.features, self.directions, starts, mode="sum", per_sample_weights=sample.strengths
        )
        return summed.add_(self.bias)

    def batch(self, name: str, index: int, n_rows: int) -> tuple[Float[Tensor, "row d_model"], Sample]:
        """The activations and features of the batch with this number of a stream of this name: always the same."""
        sample = self.sample(n_rows, stream(self.seed, name, index))
        return self.activations(sample), sample


def stream(seed: int, *names: object) -> torch.Generator:
    """Random numbers that depend on the seed and these names only."""
    word = hashlib.sha256(" ".join(map(str, (seed, *names))).encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(word, "big"))
