"""What features have to do with those of their own coder and of the nearest ones of the same site: coders and codes are
loaded when they are needed, and only those near the one at hand are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.features.coactivation import Codes, codes_of
from circuitcli.features.neighbours import Nearest, most_correlated, nearest_decoders
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

# Codes that are kept of one coder (some 400 MiB); of dense ones that is fewer tokens.
MOST_CODES = 2**25


@dataclass(frozen=True)
class Described:
    """The features of a coder that are known: their numbers, rising, and how many are active at a token on average."""

    features: Int[Tensor, " n"]
    l0: float


@dataclass(frozen=True)
class Related:
    """Of features of one coder, by the hook point of the other: whose decoders are nearest, and whose codes correlate
    most."""

    decoders: Mapping[HookPoint, Nearest]
    codes: Mapping[HookPoint, Nearest]


class Relations:
    """Looks for what is like a feature, among the features that are described."""

    def __init__(
        self,
        load: Callable[[HookPoint], SparseCoder],
        cache: ActivationCache,
        described: Mapping[HookPoint, Described],
        *,
        n_top: int,
        n_tokens: int,
    ) -> None:
        """n_tokens: of the cache, over which codes are correlated; 0 for no correlations."""
        self._load, self.cache, self.described = load, cache, described
        self.n_top, self.n_tokens = n_top, min(n_tokens, cache.n_tokens)
        self._coders: dict[HookPoint, SparseCoder] = {}
        self._codes: dict[HookPoint, Codes] = {}

    def near(self, hook: HookPoint) -> list[HookPoint]:
        """The hook point, and those of the same site that have described features next below and next above."""
        same = sorted(other for other in self.described if other.site == hook.site)
        at = same.index(hook)
        return [hook, *same[max(0, at - 1) : at], *same[at + 1 : at + 2]]

    def coder(self, hook: HookPoint) -> SparseCoder:
        """The coder that reads there."""
        if hook not in self._coders:
            self._coders[hook] = self._load(hook)
        return self._coders[hook]

    def n_correlated(self, hooks: Sequence[HookPoint]) -> int:
        """Tokens over which codes of these hook points are correlated."""
        densest = max(self.described[hook].l0 for hook in hooks)
        return min(self.n_tokens, int(MOST_CODES / max(densest, 1.0)))

    def of(self, hook: HookPoint, features: Sequence[int]) -> Related:
        """What is like these features."""
        near, wanted = self.near(hook), torch.tensor(features, dtype=torch.int64)
        for kept in (self._coders, self._codes):
            for other in [other for other in kept if other not in near]:
                del kept[other]
        decoders = {
            other: nearest_decoders(
                self.coder(hook),
                self.coder(other),
                wanted,
                n_top=self.n_top,
                among=self.described[other].features,
            )
            for other in near
        }
        if not self.n_tokens:
            return Related(decoders, {})
        codes = {other: self._codes_of(other) for other in near}
        n_tokens = self.n_correlated(near)
        own, correlated = codes[hook].rows(0, n_tokens), {}
        for other in near:
            theirs = own if other == hook else codes[other].rows(0, n_tokens)
            correlated[other] = most_correlated(own, theirs, wanted, n_top=self.n_top)
        return Related(decoders, correlated)

    def _codes_of(self, hook: HookPoint) -> Codes:
        if hook not in self._codes:
            self._codes[hook] = codes_of(self.coder(hook), self.cache, n_tokens=self.n_correlated([hook]))
        return self._codes[hook]
