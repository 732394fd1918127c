"""How well labels tell where their features are active, on text that they were not made from.

A label's rule says at which tokens its feature should be active: detection, as Paulo et al. 2024, arXiv:2410.13928,
have a language model judge it. Balanced accuracy is the mean of the share of the active tokens that the rule finds and
of the share of the others that it leaves out: 0.5 for a label that tells nothing, however rare the feature is. Beside
it stands that of a label which belongs to another feature.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcli.features.labels import Condition, Peak, Rule, key_of
from circuitcli.features.peaks import NO_TOKEN, CodedBlocks, entries

# What people are shown for token ids, as `Tokenizer.token_strings`.
Strings = Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True)
class Detection:
    """How a rule does on held-out tokens; n_active of n_tokens are active, n_covered are those that the rule names."""

    n_tokens: int
    n_active: int
    n_covered: int
    n_both: int

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of sensitivity and specificity; None where all tokens are active or none is."""
        n_silent = self.n_tokens - self.n_active
        if not self.n_active or not n_silent:
            return None
        wrong = (self.n_covered - self.n_both) / n_silent
        return (self.n_both / self.n_active + 1 - wrong) / 2

    @property
    def precision(self) -> float | None:
        """Share of the tokens named at which the feature is active; None where none is named."""
        return self.n_both / self.n_covered if self.n_covered else None

    @property
    def recall(self) -> float | None:
        """Share of the active tokens that are named; None where none is active."""
        return self.n_both / self.n_active if self.n_active else None


@dataclass(frozen=True)
class HeldOut:
    """Held-out text as its distinct pairs of a token and the one before it, and at which of them features are active.

    counts: how often each pair occurs. of_active, n_active: the pairs at which a feature is active and how often, those
    of feature i from ``starts[i]`` to ``starts[i + 1]``.
    """

    pairs: list[Peak]
    counts: Int[Tensor, " pair"]
    starts: Int[Tensor, " edge"]
    of_active: Int[Tensor, " entry"]
    n_active: Int[Tensor, " entry"]
    _known: dict[Condition, Bool[Tensor, " pair"]] = field(default_factory=dict)

    def detection(self, rule: Rule, feature: int) -> Detection:
        """How well a rule tells where a feature is active."""
        covered = self._covered(rule)
        own = slice(int(self.starts[feature]), int(self.starts[feature + 1]))
        counts = self.n_active[own]
        return Detection(
            n_tokens=int(self.counts.sum()),
            n_active=int(counts.sum()),
            n_covered=int(self.counts[covered].sum()),
            n_both=int(counts[covered[self.of_active[own]]].sum()),
        )

    def _covered(self, rule: Rule) -> Bool[Tensor, " pair"]:
        covered = torch.ones(len(self.pairs), dtype=torch.bool)
        for condition in rule.conditions:
            covered &= self._where(condition)
        return covered

    def _where(self, condition: Condition) -> Bool[Tensor, " pair"]:
        """At which pairs a condition holds: as `Condition.holds`, of all at once."""
        about, value = condition
        if about == "kind":
            # There are few kinds, and each takes a look at every pair.
            if condition not in self._known:
                found = [condition.holds(pair) for pair in self.pairs]
                self._known[condition] = torch.tensor(found, dtype=torch.bool)
            return self._known[condition]
        if isinstance(value, frozenset):
            return torch.from_numpy(np.isin(self._keys, sorted(value)))
        if about in ("token", "previous"):
            keys = self._keys if about == "token" else self._previous_keys
            return torch.from_numpy(keys == (value or ""))
        assert value is not None
        parts = self._parts(about, len(value))
        return torch.from_numpy(parts == value)

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.array([key_of(pair.token) for pair in self.pairs])

    @cached_property
    def _previous_keys(self) -> np.ndarray:
        """Empty at the start of a block: no token has an empty key."""
        return np.array(["" if pair.previous is None else key_of(pair.previous) for pair in self.pairs])

    def _parts(self, about: str, length: int) -> np.ndarray:
        if (about, length) not in self._of_words:
            words = [pair.token.strip().casefold() for pair in self.pairs]
            cut = slice(-length, None) if about == "ending" else slice(length)
            found = [word[cut] if len(word) > length and word.isalpha() else "" for word in words]
            self._of_words[about, length] = np.array(found)
        return self._of_words[about, length]

    @cached_property
    def _of_words(self) -> dict[tuple[str, int], np.ndarray]:
        return {}


def held_out(pieces: Iterable[CodedBlocks], strings: Strings, *, n_features: int) -> HeldOut:
    """Count held-out text piece by piece; memory is that of its distinct pairs, and of where features are active."""
    counted = [torch.cat(found) for found in zip(*_pairs_of(pieces), strict=True)]
    ids, place, counts = counted[0].unique(dim=0, return_inverse=True, return_counts=True)
    keys, n_active = (counted[2] * len(ids) + place[counted[1]]).unique(return_counts=True)
    features, of_active = keys // len(ids), keys % len(ids)
    starts = torch.searchsorted(features, torch.arange(n_features + 1))
    return HeldOut(list(_peaks(ids, strings)), counts, starts, of_active, n_active)


def _pairs_of(pieces: Iterable[CodedBlocks]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each piece its pairs of ids, and the rows (of all pieces) and features of what is active."""
    n_before = 0
    for blocks in pieces:
        previous = blocks.token.roll(1)
        previous[blocks.starts[:-1]] = NO_TOKEN
        seen = torch.ones(len(previous), dtype=torch.bool) if blocks.has_row is None else blocks.has_row
        number = seen.cumsum(0) - 1 + n_before
        active = entries(blocks.codes)
        yield torch.stack([previous, blocks.token], dim=1)[seen], number[active.rows], active.features
        n_before += int(seen.sum())


def _peaks(ids: Int[Tensor, "pair 2"], strings: Strings) -> Iterator[Peak]:
    distinct = ids.unique().tolist()
    words = dict(zip(distinct, strings([max(one, 0) for one in distinct]), strict=True))
    for previous, token in ids.tolist():
        yield Peak(words[token], None if previous == NO_TOKEN else words[previous])
