"""What holds at a token because of the text in front of it in its block: inside quotation marks, seen before, ..."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# What people are shown for token ids, as `Tokenizer.token_strings`.
Strings = Callable[[Sequence[int]], list[str]]

# In the order of their bits.
MARKS = ("in quotes", "in brackets", "in a comment", "token seen before", "repeats what came before", "early in a text")
# Tokens of a block that count as early.
N_EARLY = 4
_OPENING, _CLOSING, _COMMENTS = "([{", ")]}", ("#", "//", "/*")


class Surroundings:
    """Marks of tokens: bit i is set where ``MARKS[i]`` holds. The text of each token is looked at once."""

    def __init__(self, strings: Strings) -> None:
        self._strings = strings
        # Of each id: quotation marks, brackets opened less those closed, whether a comment begins, whether a line ends.
        self._known: Int[Tensor, "vocab 4"] = torch.zeros(0, 4, dtype=torch.int64)
        self._seen = torch.zeros(0, dtype=torch.bool)

    def marks(self, token: Int[Tensor, " row"], starts: Int[Tensor, " edge"]) -> Int[Tensor, " row"]:
        """The marks of whole blocks of text; starts: first row of each block, and the number of rows."""
        if not len(token):
            return token
        facts = self._facts(token)
        first = torch.repeat_interleave(starts[:-1], starts.diff())  # (row,): where the row's block begins
        before = facts.cumsum(dim=0) - facts
        before = before - before[first]
        rows = torch.arange(len(token))
        held = [
            before[:, 0] % 2 == 1,
            before[:, 1] > 0,
            _latest(facts[:, 2] > 0, rows) > torch.maximum(_latest(facts[:, 3] > 0, rows), first - 1),
            _seen_before(token, first),
            _seen_before(_pairs(token, rows, first), first) & (rows > first),
            rows - first < N_EARLY,
        ]
        return sum((is_so.long() << bit for bit, is_so in enumerate(held)), torch.zeros_like(token))

    def _facts(self, token: Int[Tensor, " row"]) -> Int[Tensor, "row 4"]:
        size = int(token.max()) + 1
        if size > len(self._seen):
            self._known = torch.cat([self._known, self._known.new_zeros(size - len(self._known), 4)])
            self._seen = torch.cat([self._seen, self._seen.new_zeros(size - len(self._seen))])
        ids = token.unique()
        new = ids[~self._seen[ids]].tolist()
        if new:
            self._known[new] = torch.tensor([_facts_of(text) for text in self._strings(new)])
            self._seen[new] = True
        return self._known[token]


def names(marks: int) -> frozenset[str]:
    """The marks of one token by name."""
    return frozenset(name for bit, name in enumerate(MARKS) if marks >> bit & 1)


def _facts_of(text: str) -> tuple[int, int, int, int]:
    opened = sum(map(text.count, _OPENING)) - sum(map(text.count, _CLOSING))
    return text.count('"'), opened, any(map(text.__contains__, _COMMENTS)), "\n" in text


def _latest(is_there: Bool[Tensor, " row"], rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """For each row the last one in front of it at which something is there; -1 for none."""
    found = torch.where(is_there, rows, -1).cummax(dim=0).values.roll(1)
    found[0] = -1
    return found


def _pairs(token: Int[Tensor, " row"], rows: Int[Tensor, " row"], first: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """A number for each token with the one in front of it."""
    return token * (int(token.max()) + 2) + torch.where(rows > first, token.roll(1) + 1, 0)


def _seen_before(items: Int[Tensor, " row"], first: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
    """Whether the same item is at an earlier row of the same block."""
    # Blocks are in order, so that a stable sort by item has the same items of one block next to each other.
    order = items.argsort(stable=True)
    same = torch.zeros_like(items, dtype=torch.bool)
    same[order[1:]] = (items[order].diff() == 0) & (first[order].diff() == 0)
    return same
