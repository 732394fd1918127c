"""What the planted features are like: how often they are active, which needs which, how strong they are.

The numbers are those of SynthSAEBench-16k (Chanin & Garriga-Alonso 2026, arXiv:2602.14687): 16,384 features in 768
dimensions. ``shrink=4`` takes every fourth rank of its frequencies, a quarter of its trees and of its dimensions: what
counts features is a quarter as much, what is said of one feature or of a pair is the same. So the interference that an
active feature meets (active features per dimension) is that of the full size.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

FULL_FEATURES, FULL_DIMENSIONS, FULL_TREES = 16_384, 768, 128
# Of the SAEs that the authors train on it, and of their steps.
FULL_WIDTH, FULL_K, FULL_BATCH = 4096, 25, 1024


@dataclass(frozen=True)
class Recipe:
    """The distribution of the planted features, number for number; ``shrink`` divides all that counts features.

    Feature i is active at the rate of Zipf's law with ``exponent``, moved and stretched to lie between ``least`` and
    ``most`` at full size. The first features are ``trees`` roots, the next their ``branching`` children each, and so on
    for ``depth`` levels: a child is active only beside its parent, of siblings one at most, and its strength is
    multiplied with its parent's over the parent's mean. The rest are free. All are correlated through ``rank`` common
    normal factors. Strengths are normal, about a mean that falls from ``strongest`` to ``weakest``, with a standard
    deviation that is itself a folded normal one, and never below zero.
    """

    shrink: int = 1
    exponent: float = 0.5
    most: float = 0.4
    least: float = 5e-4
    branching: int = 4
    depth: int = 3
    rank: int = 25
    correlation: float = 0.1
    strongest: float = 5.0
    weakest: float = 4.0
    spread_mean: float = 0.5
    spread_deviation: float = 0.5
    bias_norm: float = 0.5
    orthogonal_steps: int = 100
    orthogonal_rate: float = 3e-4

    @property
    def n_features(self) -> int:
        """Planted features."""
        return FULL_FEATURES // self.shrink

    @property
    def d_model(self) -> int:
        """Dimensions that they share."""
        return FULL_DIMENSIONS // self.shrink

    @property
    def trees(self) -> int:
        """Roots of the hierarchy."""
        return FULL_TREES // self.shrink

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """The features of each level of the hierarchy, roots first."""
        found, first, n = [], 0, self.trees
        for _ in range(self.depth + 1):
            found.append(range(first, first + n))
            first, n = first + n, n * self.branching
        return tuple(found)

    @property
    def n_in_trees(self) -> int:
        """Features of the hierarchy; those after them are free."""
        return self.levels[-1].stop

    def parents(self) -> Int[Tensor, " feature"]:
        """Of each feature its parent, -1 of one that has none."""
        parents = torch.full((self.n_features,), -1)
        for above, level in zip(self.levels, self.levels[1:], strict=False):
            parents[level.start : level.stop] = above.start + torch.arange(len(level)) // self.branching
        return parents

    def rates(self) -> Float[Tensor, " feature"]:
        """How often each feature is to be active, float64."""
        law = (torch.arange(FULL_FEATURES, dtype=torch.float64) + 1) ** -self.exponent
        full = self.least + (self.most - self.least) * (law - law[-1]) / (law[0] - law[-1])
        # The middle of the ranks that one feature stands for; of an even number of them the mean of two.
        middle = torch.arange(self.n_features) * self.shrink + (self.shrink - 1) // 2
        return (full[middle] + full[middle + (self.shrink - 1) % 2]) / 2

    def rates_beside_parents(self) -> Float[Tensor, " feature"]:
        """How often each feature is drawn where its parent is active, so that its rate is about `rates` in the end.

        Its rate over its parent's, times one plus the siblings that are to be expected there, as one of them at most
        stays; at most 1.
        """
        rates, parents = self.rates(), self.parents()
        has_parent = parents >= 0
        of_parent = torch.where(has_parent, rates[parents.clamp_min(0)], 1.0)
        of_family = torch.zeros_like(rates).index_add_(0, parents[has_parent], rates[has_parent])
        siblings = torch.where(has_parent, of_family[parents.clamp_min(0)] - rates, 0.0)
        return (rates / of_parent * (1 + siblings / of_parent)).clamp_max(1.0)
