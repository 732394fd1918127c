"""Features as lines of a file: statistics, contexts, logit effects and a label, all in plain values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuitcli.features.labels import Peak, label
from circuitcli.features.logits import LogitEffects
from circuitcli.features.peaks import NO_TOKEN
from circuitcli.features.scan import Summary
from circuitcli.features.statistics import QUANTILES
from circuitcli.hookpoints import HookPoint
from circuitcli.models.tokenizer import Tokenizer

DIGITS = 5


@dataclass(frozen=True)
class _Vocabulary:
    """Display text of ids, each made once."""

    tokenizer: Tokenizer
    known: dict[int, str]

    def __getitem__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = self.tokenizer.token_strings([token])[0]
        return self.known[token]


def describe(
    hook: HookPoint, summary: Summary, effects: LogitEffects | None, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """One line for each live feature, by index. ``effects``: of the live features, in the same order."""
    statistics = summary.statistics
    words = _Vocabulary(tokenizer, {})
    live = statistics.live
    quantiles = statistics.quantiles(live)
    density, mean = statistics.density, statistics.mean
    for row, index in enumerate(live.tolist()):
        promoted = _tokens(words, effects.promoted[row], effects.promoted_effects[row]) if effects else []
        suppressed = _tokens(words, effects.suppressed[row], effects.suppressed_effects[row]) if effects else []
        yield {
            "kind": "feature",
            "id": f"{hook}/{index}",
            "label": label(_peaks(summary, index, words), [token for token, _ in promoted]),
            "density": _rounded(float(density[index])),
            "n_active": int(statistics.n_active[index]),
            "max": _rounded(float(statistics.largest[index])),
            "mean": _rounded(float(mean[index])),
            "quantiles": {
                str(share): _rounded(value) for share, value in zip(QUANTILES, quantiles[row].tolist(), strict=True)
            },
            "contexts": list(_contexts(summary, index, words)),
            "promoted": promoted,
            "suppressed": suppressed,
        }


def _tokens(words: _Vocabulary, ids: Tensor, effects: Tensor) -> list[tuple[str, float]]:
    return [(words[token], _rounded(effect)) for token, effect in zip(ids.tolist(), effects.tolist(), strict=True)]


def _peaks(summary: Summary, index: int, words: _Vocabulary) -> list[Peak]:
    peaks = summary.peaks
    n_peaks = int((peaks.values[index] > 0).sum())
    return [
        Peak(words[token], None if previous == NO_TOKEN else words[previous])
        for token, previous in zip(
            peaks.token[index, :n_peaks].tolist(), peaks.previous[index, :n_peaks].tolist(), strict=True
        )
    ]


def _contexts(summary: Summary, index: int, words: _Vocabulary) -> Iterator[dict[str, Any]]:
    """The windows around the strongest peaks; ``peak`` is the place of the peak in the window."""
    peaks = summary.peaks
    n_shown = int((peaks.values[index, : peaks.n_windows] > 0).sum())
    for slot in range(n_shown):
        ids, activations = peaks.tokens[index, slot].tolist(), peaks.activations[index, slot].tolist()
        inside = [place for place, token in enumerate(ids) if token != NO_TOKEN]
        yield {
            "tokens": [words[ids[place]] for place in inside],
            "activations": [_rounded(activations[place]) for place in inside],
            "peak": peaks.window - inside[0],
            "block": int(peaks.block[index, slot]),
            "position": int(peaks.position[index, slot]),
        }


def _rounded(value: float) -> float:
    """Five significant digits: more than the histogram or half-precision activations give."""
    return float(f"{value:.{DIGITS}g}")
