"""Features as lines of a file: statistics, contexts, logit effects and a label, all in plain values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.features.labels import Peak, Rule, label
from circuitcli.features.logits import LogitEffects
from circuitcli.features.peaks import NO_TOKEN
from circuitcli.features.scan import Summary
from circuitcli.features.scores import HeldOut
from circuitcli.features.statistics import QUANTILES, Histogram
from circuitcli.hookpoints import HookPoint
from circuitcli.models.tokenizer import Tokenizer

DIGITS = 5
NEVER = "never active"


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
    hook: HookPoint,
    summary: Summary,
    effects: LogitEffects | None,
    tokenizer: Tokenizer,
    *,
    features: Sequence[int] | None = None,
    norms: Mapping[str, Float[Tensor, " n"]] | None = None,
    scored: HeldOut | None = None,
) -> Iterator[dict[str, Any]]:
    """One line for each live feature of a coder that reads at ``hook``, by index.

    features: those that the summary is of, where it is not of all; then each has a line, live or not. effects: of the
    features that have a line, in the same order; norms: the same, by what is written. Codes below zero are told under
    ``negative``, by their distance from zero, and only for features that have some. scored: text on which the labels of
    codes above zero are scored, each beside the label of the feature before it.
    """
    other: Rule | None = None
    words = _Vocabulary(tokenizer, {})
    rows = summary.live if features is None else torch.arange(len(features))
    above = _sides(summary, rows, words)
    below = _sides(summary.negative, rows, words, sign=-1) if summary.negative else [None] * len(rows)
    for number, (row, positive, negative) in enumerate(zip(rows.tolist(), above, below, strict=True)):
        promoted = _tokens(words, effects.promoted[number], effects.promoted_effects[number]) if effects else []
        suppressed = _tokens(words, effects.suppressed[number], effects.suppressed_effects[number]) if effects else []
        facts, peaks = positive
        rule = label(peaks, [token for token, _ in promoted]) if peaks else None
        labels = [rule.text] if rule else []
        line = {
            "kind": "feature",
            "id": f"{hook}/{row if features is None else features[row]}",
            "label": "",
            **facts,
            "promoted": promoted,
            "suppressed": suppressed,
        }
        if negative is not None and negative[1]:
            # What it suppresses is promoted where its code is below zero.
            told = label(negative[1], [token for token, _ in suppressed]).text
            line["negative"] = {"label": told, **negative[0]}
            labels.append(f"negative: {told}")
        if norms is not None:
            line["decoder_norms"] = {name: _rounded(float(found[number])) for name, found in norms.items()}
        if scored is not None and rule is not None:
            line["score"] = _score(scored, row, rule, other)
            other = rule
        yield {**line, "label": ", ".join(labels) or NEVER}


def _score(scored: HeldOut, row: int, rule: Rule, other: Rule | None) -> dict[str, float | int | None]:
    own = scored.detection(rule, row)
    exchanged = None if other is None else scored.detection(other, row).balanced_accuracy
    shares = {
        "balanced_accuracy": own.balanced_accuracy,
        "precision": own.precision,
        "recall": own.recall,
        "exchanged": exchanged,
    }
    told = {name: None if share is None else _rounded(share) for name, share in shares.items()}
    return {**told, "n_active": own.n_active, "n_tokens": own.n_tokens}


def _sides(
    summary: Summary, rows: Int[Tensor, " row"], words: _Vocabulary, *, sign: int = 1
) -> Iterator[tuple[dict[str, Any], list[Peak]]]:
    """For each of these rows of a summary, what is told of it, and its peaks; ``sign`` is that of the activations."""
    statistics, furthest = summary.statistics, "max" if sign > 0 else "min"
    density, mean = statistics.density, statistics.mean
    for row, quantiles in zip(rows.tolist(), statistics.quantiles(rows).tolist(), strict=True):
        n_active = int(statistics.n_active[row])
        pairs = zip(QUANTILES, quantiles, strict=True) if n_active else ()
        facts = {
            "density": _rounded(float(density[row])),
            "n_active": n_active,
            furthest: _rounded(sign * float(statistics.largest[row])),
            "mean": _rounded(sign * float(mean[row])),
            "quantiles": {str(share): _rounded(sign * value) for share, value in pairs},
            "histogram": _histogram(statistics.histogram(row), sign=sign),
            "contexts": list(_contexts(summary, row, words)),
        }
        yield facts, _peaks(summary, row, words)


def _histogram(found: Histogram | None, *, sign: int) -> dict[str, list[float] | list[int]] | None:
    """Edges from the lowest to the highest, with the sign of the activations, and what lies between them."""
    if found is None:
        return None
    return {"edges": [_rounded(sign * edge) for edge in found.edges[::sign]], "counts": list(found.counts[::sign])}


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
