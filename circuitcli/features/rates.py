"""How often what a rule asks for is in any text: a rule that holds nearly everywhere tells nothing."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcli.features.conditions import N_NEAR, NEIGHBOURS, Condition, facts_of, holds_of, key_of, word_of
from circuitcli.features.scan import TextCounts
from circuitcli.features.surroundings import MARKS, Strings

# Where no text was counted.
_USUAL = {"token": 1e-3, "tokens": 3e-3, "ending": 0.02, "beginning": 0.02, "kind": 0.4, "mark": 0.2, "near": 0.1}
# Share of tokens at the start of a block.
_STARTS = 0.01


class TokenTests:
    """Whether the texts of some tokens are what is asked for, each looked at once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._known: dict[tuple[str, str | frozenset[str]], Bool[Tensor, " token"]] = {}
        self._parts: dict[tuple[str, int], np.ndarray] = {}

    def where(self, what: str, value: str | frozenset[str]) -> Bool[Tensor, " token"]:
        """As `conditions.holds_of`, of all of them."""
        if what == "token":
            return torch.from_numpy(self._keys == value)
        if what == "tokens":
            return torch.from_numpy(np.isin(self._keys, sorted(value)))
        if what == "words":
            return torch.from_numpy(np.isin(self._words, sorted(value)))
        if what in ("ending", "beginning"):
            assert isinstance(value, str)
            return torch.from_numpy(self._cut(what, len(value)) == value)
        # There are few kinds, and each takes a look at every token.
        if (what, value) not in self._known:
            found = [holds_of(text, what, value) for text in self.texts]
            self._known[what, value] = torch.tensor(found, dtype=torch.bool)
        return self._known[what, value]

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.array([key_of(text) for text in self.texts], dtype=str)

    @cached_property
    def _words(self) -> np.ndarray:
        return np.array([word_of(text) or "" for text in self.texts], dtype=str)

    def _cut(self, what: str, length: int) -> np.ndarray:
        if (what, length) not in self._parts:
            words = [text.strip().casefold() for text in self.texts]
            cut = slice(-length, None) if what == "ending" else slice(length)
            found = [word[cut] if len(word) > length and word.isalpha() else "" for word in words]
            self._parts[what, length] = np.array(found, dtype=str)
        return self._parts[what, length]


class BaseRates:
    """The share of all tokens at which a condition holds; of neighbours as of any token.

    Without text there are guesses, which only keep apart what is rare and what is not.
    """

    def __init__(self, text: TextCounts | None = None, strings: Strings | None = None) -> None:
        self._marks: dict[str, float] = {}
        # By what is asked of a token and the value.
        self._shares: dict[tuple[str, str], float] | None = None
        if text is not None and text.n_tokens and strings is not None:
            ids = text.tokens.nonzero()[:, 0]
            shares = (text.tokens[ids].double() / text.n_tokens).tolist()
            self._shares = _summed(strings(ids.tolist()), shares)
            self._marks = dict(zip(MARKS, (text.marks.double() / text.n_tokens).tolist(), strict=True))

    def share(self, condition: Condition) -> float:
        """How often a condition holds."""
        about, value = condition
        what = NEIGHBOURS[about][1] if about in NEIGHBOURS else about
        if value is None:
            return _STARTS
        if self._shares is None:
            return _USUAL[what]
        if isinstance(value, frozenset):
            of_each = "word" if about == "near" else "token"
            found = min(sum(self._shares.get((of_each, one), 0.0) for one in value), 1.0)
            return 1 - (1 - found) ** N_NEAR if about == "near" else found
        return self._marks.get(value, 0.0) if about == "mark" else self._shares.get((what, value), 0.0)


def _summed(texts: Sequence[str], shares: Sequence[float]) -> dict[tuple[str, str], float]:
    """How often each thing that can be asked of a token is so."""
    found: dict[tuple[str, str], float] = {}
    for text, share in zip(texts, shares, strict=True):
        word = word_of(text)
        for item in (*facts_of(text), *([] if word is None else [("word", word)])):
            found[item] = found.get(item, 0.0) + share
    return found
