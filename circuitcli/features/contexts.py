"""Pieces of text on which a feature is active: its strongest, and some at quantiles of its activation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from circuitcli import pieces
from circuitcli.features.conditions import N_NEAR, Peak, word_of
from circuitcli.features.peaks import NO_TOKEN, Peaks
from circuitcli.features.scan import Summary
from circuitcli.features.surroundings import Strings, names

DIGITS = 5
# Activations drawn by lot for each context at a quantile, so that one is near.
SAMPLES_PER_QUANTILE = 3


@dataclass(frozen=True)
class _Shown:
    """A peak with a window: which feature's, where it is kept, and which share of the activations is no larger."""

    peaks: Peaks
    feature: int
    slot: int
    quantile: float

    @property
    def block(self) -> int:
        return int(self.peaks.block[self.feature, self.slot])

    @property
    def text(self) -> tuple[str, int]:
        """What tells its piece of text from others: its document, or its block where that is not known."""
        document = int(self.peaks.document[self.feature, self.slot])
        return ("block", self.block) if document == NO_TOKEN else ("document", document)


def contexts(summary: Summary, feature: int, strings: Strings) -> list[dict[str, Any]]:
    """The strongest contexts, strongest first, then others from the higher to the lower quantiles, each from another
    piece of text. Bytes are joined to the characters that they make; ``peak`` is the place of the peak."""
    peaks = summary.peaks
    n_shown = int((peaks.values[feature, : peaks.n_windows] > 0).sum())
    top = _shown(summary, peaks, feature, n_shown)
    return [_told(shown, strings) for shown in (*top, *_at_quantiles(summary, feature, {shown.text for shown in top}))]


def peaks_of(peaks: Peaks, feature: int, strings: Strings, *, others: Peaks | None = None) -> list[Peak]:
    """The peaks of a feature as labels are made from them, in the order in which they are kept; without those that are
    among the ``others``, so that none is evidence twice."""
    n_peaks = int((peaks.values[feature] > 0).sum())
    if not n_peaks:
        return []
    columns = (peaks.token, peaks.previous, peaks.following, peaks.marks)
    token, previous, following, marks = (column[feature, :n_peaks].tolist() for column in columns)
    windows = peaks.tokens[feature, :n_peaks, max(peaks.window - N_NEAR, 0) : peaks.window].tolist()
    texts = dict.fromkeys((*token, *previous, *following, *(one for window in windows for one in window)))
    known = dict(zip(texts, strings([max(one, 0) for one in texts]), strict=True)) | {NO_TOKEN: None}
    words = [
        frozenset(word for one in window if (text := known[one]) and (word := word_of(text))) for window in windows
    ]
    near = dict(enumerate(words))
    found = [
        Peak(
            known[token[slot]] or "", known[previous[slot]], known[following[slot]], names(marks[slot]), near.get(slot)
        )
        for slot in range(n_peaks)
    ]
    if others is None:
        return found
    taken = {*_places(others, feature)}
    return [peak for peak, place in zip(found, _places(peaks, feature), strict=False) if place not in taken]


def _places(peaks: Peaks, feature: int) -> Iterator[tuple[int, int]]:
    """Block and position of each peak."""
    return zip(peaks.block[feature].tolist(), peaks.position[feature].tolist(), strict=True)


def rounded(value: float) -> float:
    """Five significant digits: more than the histogram or half-precision activations give."""
    # Most activations are zero.
    return float(f"{value:.{DIGITS}g}") if value else 0.0


def _shown(summary: Summary, peaks: Peaks, feature: int, n: int) -> list[_Shown]:
    sizes = peaks.activations[feature, :n, peaks.window].abs()
    shares = summary.statistics.shares_below(feature, sizes)
    return [_Shown(peaks, feature, slot, share) for slot, share in enumerate(shares)]


def _at_quantiles(summary: Summary, feature: int, taken: set[tuple[str, int]]) -> Iterator[_Shown]:
    """Of the activations drawn by lot those that are nearest to evenly spaced quantiles, from other texts."""
    samples = summary.samples
    n_drawn = int((samples.values[feature, : samples.n_windows] > 0).sum())
    free = [shown for shown in _shown(summary, samples, feature, n_drawn) if shown.text not in taken]
    n = samples.n_windows // SAMPLES_PER_QUANTILE
    chosen = []
    for number in range(min(n, len(free))):
        target = 1 - (number + 0.5) / n
        chosen.append(min(free, key=lambda shown: abs(shown.quantile - target)))
        free.remove(chosen[-1])
    yield from sorted(chosen, key=lambda shown: -shown.quantile)


def _told(shown: _Shown, strings: Strings) -> dict[str, Any]:
    peaks, place = shown.peaks, (shown.feature, shown.slot)
    ids, activations = peaks.tokens[place].tolist(), peaks.activations[place].tolist()
    start, stop = _bounds(ids)
    tokens, values, peak = strings(ids[start:stop]), activations[start:stop], peaks.window - start
    if any(token[:3] == "<0x" for token in tokens):
        parts = pieces.joined(tokens)
        tokens, values, peak = [*pieces.texts(tokens)], pieces.furthest(values, parts), pieces.place_of(peak, parts)
    document = int(peaks.document[place])
    return {
        "tokens": tokens,
        "activations": [rounded(value) for value in values],
        "peak": peak,
        "block": shown.block,
        "position": int(peaks.position[place]),
        "quantile": rounded(shown.quantile),
        **({} if document == NO_TOKEN else {"document": document}),
    }


def _bounds(ids: list[int]) -> tuple[int, int]:
    """Where the window's tokens begin and end: it holds NO_TOKEN beyond its block."""
    n_before = next(at for at, token in enumerate(ids) if token != NO_TOKEN)
    n_behind = next(at for at, token in enumerate(reversed(ids)) if token != NO_TOKEN)
    return n_before, len(ids) - n_behind
