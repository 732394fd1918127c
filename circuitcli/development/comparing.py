"""Features of two coders compared, and what two seeds of one checkpoint, or chance, would have given.

A share of matches means nothing by itself: some dictionaries have many features, or few dimensions, and then chance
gives high cosines; two seeds of one model share less than all of their features; and a network without any training has
features of single tokens, which the trained one has too. So each share stands beside that of another seed of the same
checkpoint, that of shuffled features, and that among features which the token alone does not explain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.features.coactivation import Codes, Likeness, likeness
from circuitcli.features.matching import directions
from circuitcli.features.pairing import THRESHOLDS, Assignment, Pairs, paired
from circuitcli.features.tokens import explained_by_token
from circuitcli.saes.base import SparseCoder

# From here on a feature counts as one of single tokens.
OF_TOKEN = 0.5
# Bins of the histograms of cosines from 0 to 1; what is negative falls into the first.
BINS = 20
_SAMPLES = 1000


@dataclass(frozen=True)
class Side:
    """One coder as its features are compared: their codes of some tokens, the unit directions that they write, and how
    much of each the token itself explains."""

    codes: Codes
    directions: Float[Tensor, "d_sae d"]
    of_token: Float[Tensor, " d_sae"]

    @classmethod
    def of(cls, coder: SparseCoder, codes: Codes, tokens: Tensor) -> "Side":
        """A coder, its codes and the tokens that they are of."""
        return cls(codes, directions(coder), explained_by_token(codes, tokens))

    def shuffled(self, seed: int) -> "Side":
        """As many features, each active as often and as strongly, but on other tokens; and random directions with the
        mean and the covariance of the live ones."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.codes.n_tokens, generator=generator)
        live = self.directions[self.codes.live]
        if not len(live):
            return replace(self, codes=self.codes.permuted(order))
        mean = live.mean(dim=0)
        drawn = torch.randn(len(self.directions), len(live), generator=generator) @ (live - mean)
        made = mean + drawn / len(live) ** 0.5
        unit = made / made.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return replace(self, codes=self.codes.permuted(order), directions=unit)


@dataclass(frozen=True)
class Comparison:
    """Features of two coders paired by one measure; ``other`` is the cosine of each pair by the other measure."""

    by: str
    pairs: Pairs
    other: Float[Tensor, " pair"]
    of_token: Float[Tensor, " d_target"]

    def facts(self, *, least: float, seed: int) -> dict[str, Any]:
        """What a match record tells of it, as numbers of Python; least: cosine from which on two features are one."""
        pairs, near = self.pairs, 1 - self.pairs.cosine
        n_live, counts = pairs.n_live_target, [pairs.n_within(distance) for distance in THRESHOLDS]
        bounds = [_interval(count, n_live, seed=seed) for count in counts]
        is_context = self.of_token[pairs.target] < OF_TOKEN
        n_context = self._n_context()
        of_context = [int((is_context & (near < distance)).sum()) for distance in THRESHOLDS]
        return {
            "by": self.by,
            "n_source": pairs.n_live_source,
            "n_target": n_live,
            "dead_source": len(pairs.dead_source),
            "dead_target": len(pairs.dead_target),
            "distances": THRESHOLDS,
            "shares": _shares(counts, n_live),
            "low": tuple(low for low, _ in bounds),
            "high": tuple(high for _, high in bounds),
            "n_context": n_context,
            "context_shares": _shares(of_context, n_context),
            "cosine": _mean(pairs.cosine),
            "other_cosine": _mean(self.other),
            "histogram": _histogram(pairs.cosine),
            "other_histogram": _histogram(self.other),
            "same": pairs.n_alike(least) / n_live if n_live else 0.0,
        }

    def _n_context(self) -> int:
        is_dead = torch.zeros(self.pairs.n_target, dtype=torch.bool)
        is_dead[self.pairs.dead_target] = True
        return int((~is_dead & (self.of_token < OF_TOKEN)).sum())


def compared(source: Side, target: Side, *, by: Likeness, assignment: Assignment) -> dict[str, Comparison]:
    """The features of the target matched with those of the source, by their activations and by what they write.

    A feature is live if it is active on any of the tokens. Source and target are of the same tokens.
    """
    live = {"live_source": source.codes.live, "live_target": target.codes.live}
    measures = {
        by: lambda: likeness(source.codes, target.codes, by),
        "decoder": lambda: source.directions @ target.directions.T,
    }
    found: dict[str, Comparison] = {}
    pairs: dict[str, Pairs] = {}
    others: Mapping[str, str] = {by: "decoder", "decoder": by}
    alike = {name: make() for name, make in measures.items()}
    for name, matrix in alike.items():
        pairs[name] = paired(matrix, assignment=assignment, **live)
    for name, made in pairs.items():
        other = alike[others[name]][made.source, made.target].double()
        found[name] = Comparison(name, made, other, target.of_token)
    return found


def _interval(count: int, total: int, *, seed: int) -> tuple[float, float]:
    """A 95 % bootstrap interval of a share, over features: each sample draws as many, and counts those that match."""
    if not total:
        return 0.0, 0.0
    drawn = np.random.default_rng(seed).binomial(total, count / total, size=_SAMPLES) / total
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _shares(counts: Sequence[int], total: int) -> tuple[float, ...]:
    return tuple(count / total if total else 0.0 for count in counts)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _histogram(values: Tensor) -> tuple[int, ...]:
    bins = (values.clamp(0, 1) * BINS).long().clamp(max=BINS - 1)
    return tuple(torch.bincount(bins, minlength=BINS).tolist())
