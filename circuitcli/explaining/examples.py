"""Pieces of text in which a feature is active, or silent, as a language model is shown them; needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from circuitcli.features.conditions import Peak
from circuitcli.features.labels import Rule

# In the order in which they are told: where the feature is active; where nothing is known of it; where a feature with
# a similar decoder is active; at a token at which it is active elsewhere.
ACTIVE, RANDOM, NEIGHBOUR, SIMILAR = "active", "random", "neighbour", "similar"
# Of fuzzing: the text of an active example, with the marks elsewhere.
MOVED = "moved"
# Tokens of at least this share of an example's strongest activation are marked.
MARKED_SHARE = 0.3


@dataclass(frozen=True)
class Example:
    """One piece of text. ``marks`` are the tokens that are marked where marks are shown; ``peaks`` what rules are told
    of each token."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    kind: str
    marks: tuple[bool, ...]
    peaks: tuple[Peak, ...] = ()

    @classmethod
    def of(
        cls, tokens: Sequence[str], activations: Sequence[float], kind: str, peaks: Sequence[Peak] = ()
    ) -> "Example":
        """An example that is marked where it is most active."""
        least = MARKED_SHARE * max(activations, default=0.0)
        marks = tuple(value > 0 and value >= least for value in activations)
        return cls(tuple(tokens), tuple(activations), kind, marks, tuple(peaks))

    @property
    def is_right(self) -> bool:
        """Whether a good label says yes to it."""
        return self.kind == ACTIVE

    def marked_at(self, places: Sequence[int], kind: str) -> "Example":
        """The same text with other marks."""
        chosen = frozenset(places)
        return replace(self, kind=kind, marks=tuple(place in chosen for place in range(len(self.tokens))))

    def fits(self, rule: Rule, *, marked: bool = False) -> bool:
        """Whether a rule covers a token of the text, or most of the marked ones."""
        covered = [rule.covers(peak) for peak in self.peaks]
        if not marked:
            return any(covered)
        of_marks = [one for one, is_marked in zip(covered, self.marks, strict=True) if is_marked]
        return sum(of_marks) * 2 > len(of_marks)


@dataclass(frozen=True)
class Subject:
    """A feature that is to be explained: what a label is made from, and other text to score it on.

    rule: the label that the rules make from the same texts as the model's.
    """

    id: str
    sae: str | None
    shown: tuple[Example, ...]
    held: tuple[Example, ...]
    promoted: tuple[str, ...]
    rule: Rule | None
