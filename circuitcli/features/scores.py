"""How well labels tell where their features are active, on text that they were not made from.

A label's rule says at which tokens its feature should be active: detection, as Paulo et al. 2024, arXiv:2410.13928,
have a language model judge it. Balanced accuracy is the mean of the share of the active tokens that the rule finds and
of the share of the others that it leaves out: 0.5 for a label that tells nothing, however rare the feature is. Beside
it stands that of a label which belongs to another feature.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcli.features.conditions import N_NEAR, NEIGHBOURS, Condition
from circuitcli.features.kinds import PREVIOUS
from circuitcli.features.labels import Rule
from circuitcli.features.peaks import CodedBlocks, entries
from circuitcli.features.rates import TokenTests
from circuitcli.features.surroundings import MARKS, Strings, Surroundings


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
    """Held-out text, and at which of its tokens features are active.

    tests: the distinct tokens. token: which of them stands at each row; first, last: the first and the last row of its
    block; marks: what holds there. rows: those that have an activation. of_active: of these the ones at which a feature
    is active, those of feature i from ``starts[i]`` to ``starts[i + 1]``.
    """

    tests: TokenTests
    token: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]
    marks: Int[Tensor, " row"]
    rows: Int[Tensor, " seen"]
    starts: Int[Tensor, " edge"]
    of_active: Int[Tensor, " entry"]
    _known: dict[Condition, Bool[Tensor, " seen"]] = field(default_factory=dict)

    def detection(self, rule: Rule, feature: int) -> Detection:
        """How well a rule tells where a feature is active."""
        covered = torch.ones(len(self.rows), dtype=torch.bool)
        for condition in rule.conditions:
            covered &= self._where(condition)
        own = self.of_active[int(self.starts[feature]) : int(self.starts[feature + 1])]
        return Detection(
            n_tokens=len(self.rows),
            n_active=len(own),
            n_covered=int(covered.sum()),
            n_both=int(covered[own].sum()),
        )

    def _where(self, condition: Condition) -> Bool[Tensor, " seen"]:
        """At which tokens a condition holds: as `Condition.holds`, of all at once."""
        if condition.about not in ("kind", "previous kind", "following kind", "mark"):
            return self._held(condition)[self.rows]
        # There are few of these, and many features have them.
        if condition not in self._known:
            self._known[condition] = self._held(condition)[self.rows]
        return self._known[condition]

    def _held(self, condition: Condition) -> Bool[Tensor, " row"]:
        about, value = condition
        rows = torch.arange(len(self.token))
        if about == "mark":
            assert isinstance(value, str)
            return (self.marks >> MARKS.index(value) & 1).bool()
        if about == "near":
            assert isinstance(value, frozenset)
            before = self.tests.where("words", value)[self.token].long().cumsum(0)
            before = torch.cat([torch.zeros(1, dtype=torch.int64), before])
            return before[rows] > before[torch.maximum(self.first, rows - N_NEAR)]
        if about in NEIGHBOURS:
            side, what = NEIGHBOURS[about]
            is_there, step = (rows > self.first, 1) if side == "previous" else (rows < self.last, -1)
            return ~is_there if value is None else is_there & self.tests.where(what, value)[self.token].roll(step)
        assert value is not None
        held = self.tests.where(about, value)[self.token]
        if about == "kind" and value in PREVIOUS:
            fits = torch.tensor([PREVIOUS[value](text) for text in self.tests.texts], dtype=torch.bool)
            held = held & (rows > self.first) & fits[self.token].roll(1)
        return held


def held_out(pieces: Iterable[CodedBlocks], strings: Strings, *, n_features: int) -> HeldOut:
    """Count held-out text piece by piece; memory is that of its tokens, and of where features are active."""
    columns = [torch.cat(found) for found in zip(*_columns(pieces, Surroundings(strings)), strict=True)]
    ids, first, last, marks, seen, rows, features = columns
    distinct, token = ids.unique(return_inverse=True)
    order = features.argsort(stable=True)
    starts = torch.searchsorted(features[order], torch.arange(n_features + 1))
    tests = TokenTests(strings(distinct.tolist()))
    return HeldOut(tests, token, first, last, marks, seen.nonzero()[:, 0], starts, rows[order])


def _columns(pieces: Iterable[CodedBlocks], surroundings: Surroundings) -> Iterator[tuple[Tensor, ...]]:
    """Of each piece its tokens, the ends of their blocks, what holds there, whether there is an activation; and the
    rows (of all that have one, in all pieces) and features of what is active."""
    n_tokens = n_before = 0
    for blocks in pieces:
        seen = torch.ones(len(blocks.token), dtype=torch.bool) if blocks.has_row is None else blocks.has_row
        lengths = blocks.starts.diff()
        first, last = (torch.repeat_interleave(edge, lengths) for edge in (blocks.starts[:-1], blocks.starts[1:] - 1))
        marks = surroundings.marks(blocks.token, blocks.starts)
        active = entries(blocks.codes)
        number = seen.cumsum(0) - 1 + n_before
        yield blocks.token, first + n_tokens, last + n_tokens, marks, seen, number[active.rows], active.features
        n_tokens, n_before = n_tokens + len(seen), n_before + int(seen.sum())
