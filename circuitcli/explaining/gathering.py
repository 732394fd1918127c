"""Examples of features from cached activations: those that a label is made from, and others on which it is scored.

A block of text in which a feature is active serves one of the two only, and a text that is the same word for word as
one that was shown is not scored on. Silent examples are of three kinds, for a label is easily right about random text:
random ones, those at tokens at which the feature is active elsewhere, and those where features with a similar decoder
are active.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli import pieces, progress
from circuitcli.activations.cache import ActivationCache
from circuitcli.explaining.examples import ACTIVE, NEIGHBOUR, RANDOM, SIMILAR, Example, Subject
from circuitcli.features.conditions import N_NEAR, Peak, word_of
from circuitcli.features.labels import Rule, label
from circuitcli.features.neighbours import nearest_decoders
from circuitcli.features.rates import BaseRates
from circuitcli.features.scan import LABEL_PEAKS, TextCounts, coded_pieces
from circuitcli.features.surroundings import Strings, Surroundings, names
from circuitcli.saes.base import SparseCoder

BATCH_SIZE = 4096
# Features with a similar decoder that are looked at for silent examples.
N_NEIGHBOURS = 3
# Places that are tried for one silent example.
_TRIES = 50


@dataclass(frozen=True)
class Wanted:
    """How many examples, of how many tokens on either side of the middle, drawn with which seed."""

    n_shown: int
    n_scored: int
    window: int
    seed: int


@dataclass(frozen=True)
class Text:
    """All tokens that were looked at, block after block, and where each feature is active in them.

    starts: first row of each block, and the number of rows at the end. marks: of each row, as `Surroundings` gives
    them. active: of each feature the rows, in order, and the activations there. rates: how often what rules ask for is
    in the text. strings: what people are shown for token ids.
    """

    tokens: Int[Tensor, " row"]
    starts: Int[Tensor, " edge"]
    marks: Int[Tensor, " row"]
    active: Mapping[int, tuple[Int[Tensor, " entry"], Float[Tensor, " entry"]]]
    rates: BaseRates
    strings: Strings
    _rows_of: dict[int, list[int]] = field(default_factory=dict)

    def bounds(self, row: int, window: int) -> tuple[int, int]:
        """First row, and last + 1, of the piece of its block around a row."""
        block = int(torch.searchsorted(self.starts, row, right=True))
        return max(row - window, int(self.starts[block - 1])), min(row + window + 1, int(self.starts[block]))

    def is_silent(self, feature: int, first: int, last: int) -> bool:
        """Whether a feature is active at none of these rows."""
        rows, _ = self.active[feature]
        return int(torch.searchsorted(rows, first)) == int(torch.searchsorted(rows, last))

    def example(self, feature: int, row: int, *, window: int, kind: str) -> Example:
        """The piece of text around a row, with a feature's activations."""
        first, last = self.bounds(row, window)
        rows, values = self.active[feature]
        start, stop = int(torch.searchsorted(rows, first)), int(torch.searchsorted(rows, last))
        activations = [0.0] * (last - first)
        for place, value in zip(rows[start:stop].tolist(), values[start:stop].tolist(), strict=True):
            activations[place - first] = float(f"{value:.5g}")
        words = self.strings(self.tokens[first:last].tolist())
        parts = pieces.joined(words)
        told = [self.peak(first + part.start) for part in parts]
        return Example.of([part.text for part in parts], pieces.furthest(activations, parts), kind, told)

    def peak(self, row: int) -> Peak:
        """What rules are told of a token."""
        block = int(torch.searchsorted(self.starts, row, right=True))
        start, stop = int(self.starts[block - 1]), int(self.starts[block])
        first, last = max(start, row - N_NEAR), min(stop, row + 2)
        words = self.strings(self.tokens[first:last].tolist())
        place = row - first
        near = frozenset(word for text in words[:place] if (word := word_of(text)))
        previous = words[place - 1] if place else None
        following = words[place + 1] if place + 1 < len(words) else None
        return Peak(words[place], previous, following, names(int(self.marks[row])), near)

    def peaks(self, feature: int) -> list[tuple[float, int]]:
        """Of each block in which a feature is active its largest activation and where that is, largest first."""
        rows, values = self.active[feature]
        best: dict[int, tuple[float, int]] = {}
        blocks = torch.searchsorted(self.starts, rows, right=True)
        for block, row, value in zip(blocks.tolist(), rows.tolist(), values.tolist(), strict=True):
            if value > best.get(block, (0.0, 0))[0]:
                best[block] = value, row
        return sorted(best.values(), key=lambda pair: (-pair[0], pair[1]))

    def rows_of(self, token: int) -> list[int]:
        """Where a token stands."""
        if token not in self._rows_of:
            self._rows_of[token] = (self.tokens == token).nonzero()[:, 0].tolist()
        return self._rows_of[token]


def read_text(
    cache: ActivationCache,
    coder: SparseCoder,
    features: Iterable[int],
    strings: Strings,
    *,
    n_tokens: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Text:
    """The first tokens of a cache, or all, and where these features are active in them; memory is that of the tokens
    and of what is active."""
    wanted = sorted({*features})
    stop = min(n_tokens or cache.n_tokens, cache.n_tokens)
    tokens, starts, marks, found, n_before = [], [], [], [], 0
    surroundings, counts = Surroundings(strings), TextCounts()
    with progress.task(f"examples at {coder.hook}", total=stop, unit="tokens") as advance:
        for blocks in coded_pieces(cache, coder, 0, stop, batch_size=batch_size):
            rows, columns = (blocks.codes[:, wanted] > 0).nonzero(as_tuple=True)
            values = blocks.codes[rows, torch.tensor(wanted, device=rows.device)[columns]]
            found.append((rows.cpu() + n_before, columns.cpu(), values.float().cpu()))
            marks.append(surroundings.marks(blocks.token, blocks.starts))
            counts.add(replace(blocks, marks=marks[-1]))
            tokens.append(blocks.token)
            starts.append(blocks.starts[:-1] + n_before)
            n_before += len(blocks.token)
            advance(len(blocks.token))
    rows, columns, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    active = {index: (rows[columns == place], values[columns == place]) for place, index in enumerate(wanted)}
    edges = torch.cat([*starts, torch.tensor([n_before])])
    rates = BaseRates(counts, strings)
    return Text(torch.cat(tokens), edges, torch.cat(marks), active, rates, strings)


def neighbours(coder: SparseCoder, features: Sequence[int], n: int = N_NEIGHBOURS) -> dict[int, list[int]]:
    """For each feature those whose decoders are most like its own, the most alike first."""
    wanted, every = torch.tensor(features, dtype=torch.int64), torch.arange(coder.d_sae)
    found = nearest_decoders(coder, coder, wanted, n_top=n, among=every)
    return {feature: [other for other, _ in found.row(row)] for row, feature in enumerate(features)}


def subject(
    text: Text,
    feature: int,
    *,
    name: str,
    sae: str | None,
    near: Sequence[int],
    promoted: Sequence[str],
    wanted: Wanted,
) -> Subject:
    """A feature with its examples; of one that is active in a single block none is left to score on."""
    random = Random(f"{wanted.seed} {name}")
    peaks = text.peaks(feature)
    order = list(range(len(peaks)))
    random.shuffle(order)
    ours = frozenset(order[: (len(order) + 1) // 2])
    for_label = [peak for number, peak in enumerate(peaks) if number in ours]
    others = [peak for number, peak in enumerate(peaks) if number not in ours]
    at = lambda row, kind: text.example(feature, row, window=wanted.window, kind=kind)  # noqa: E731
    shown = [at(row, ACTIVE) for _, row in _spread(for_label, wanted.n_shown, n_top=wanted.n_shown // 2)]
    known = {example.tokens for example in shown}
    held = [at(row, ACTIVE) for _, row in _spread(others, wanted.n_scored)]
    held = [example for example in held if example.tokens not in known]
    silent = _silent(text, feature, near, [row for _, row in peaks], wanted, len(held), random)
    rule = _rule(text, feature, for_label, promoted) if for_label else None
    return Subject(name, sae, tuple(shown), (*held, *silent), tuple(promoted), rule)


def _spread(peaks: Sequence[tuple[float, int]], n: int, *, n_top: int = 0) -> list[tuple[float, int]]:
    """The strongest, and of the rest, which are in order, as many more as are wanted at equal distances."""
    top, rest = [*peaks[:n_top]], peaks[n_top:]
    n_rest = min(n - len(top), len(rest))
    return top + [rest[(2 * number + 1) * len(rest) // (2 * n_rest)] for number in range(n_rest)]


def _rule(text: Text, feature: int, peaks: Sequence[tuple[float, int]], promoted: Sequence[str]) -> Rule:
    """The label that rules make from the blocks that a model's label may be made from."""
    strongest = [text.peak(row) for _, row in peaks[:LABEL_PEAKS]]
    samples = [text.peak(row) for _, row in _spread(peaks, LABEL_PEAKS)]
    density = len(text.active[feature][0]) / len(text.tokens)
    return label(strongest, promoted, samples=samples, rates=text.rates, density=density)


def _silent(
    text: Text, feature: int, near: Sequence[int], peaks: Sequence[int], wanted: Wanted, n: int, random: Random
) -> list[Example]:
    """So many examples in which a feature is silent: a quarter of either of the hard kinds, the rest at random."""
    same_tokens = {int(text.tokens[row]) for row in peaks[:LABEL_PEAKS]}
    places = {
        NEIGHBOUR: [row for other in near for _, row in text.peaks(other)],
        SIMILAR: [row for token in sorted(same_tokens) for row in text.rows_of(token)],
    }
    found: list[Example] = []
    taken: set[int] = set()

    def take(kind: str, rows: Iterable[int], count: int) -> None:
        for row in rows:
            if count <= 0:
                return
            first, last = text.bounds(row, wanted.window)
            if first not in taken and text.is_silent(feature, first, last):
                found.append(text.example(feature, row, window=wanted.window, kind=kind))
                taken.add(first)
                count -= 1

    for kind, rows in places.items():
        random.shuffle(rows)
        # One of either kind at least, where there are several.
        take(kind, rows[: _TRIES * n], max(n // 4, min(1, n // 3)))
    n_rows = len(text.tokens)
    take(RANDOM, (random.randrange(n_rows) for _ in range(_TRIES * n)), n - len(found))
    return found
