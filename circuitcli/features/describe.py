"""Features as lines of a file: statistics, contexts, logit effects and a label, all in plain values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.features.contexts import contexts, peaks_of
from circuitcli.features.contexts import rounded as _rounded
from circuitcli.features.labels import Rule, label
from circuitcli.features.logits import LogitEffects
from circuitcli.features.rates import BaseRates
from circuitcli.features.scan import Summary
from circuitcli.features.scores import HeldOut
from circuitcli.features.statistics import QUANTILES, Histogram
from circuitcli.hookpoints import HookPoint
from circuitcli.models.tokenizer import Tokenizer

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

    def several(self, tokens: Sequence[int]) -> list[str]:
        return [self[token] for token in tokens]


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
    rates = BaseRates(summary.text, words.several)
    above = _sides(summary, rows, words, rates)
    below = _sides(summary.negative, rows, words, rates, sign=-1) if summary.negative else [None] * len(rows)
    for number, (row, positive, negative) in enumerate(zip(rows.tolist(), above, below, strict=True)):
        promoted = _tokens(words, effects.promoted[number], effects.promoted_effects[number]) if effects else []
        suppressed = _tokens(words, effects.suppressed[number], effects.suppressed_effects[number]) if effects else []
        facts, labelled = positive
        rule = labelled([token for token, _ in promoted])
        labels = [rule.text] if rule else []
        line = {
            "kind": "feature",
            "id": f"{hook}/{row if features is None else features[row]}",
            "label": "",
            **({} if rule is None or rule.confidence is None else {"confidence": _rounded(rule.confidence)}),
            **facts,
            "promoted": promoted,
            "suppressed": suppressed,
        }
        # What it suppresses is promoted where its code is below zero.
        if negative is not None and (told := negative[1]([token for token, _ in suppressed])) is not None:
            line["negative"] = {"label": told.text, **negative[0]}
            labels.append(f"negative: {told.text}")
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
    summary: Summary, rows: Int[Tensor, " row"], words: _Vocabulary, rates: BaseRates, *, sign: int = 1
) -> Iterator[tuple[dict[str, Any], Callable[[list[str]], Rule | None]]]:
    """For each of these rows of a summary, what is told of it, and what labels it, given the tokens that it promotes;
    ``sign`` is that of the activations."""

    def labelled(row: int, promoted: list[str]) -> Rule | None:
        peaks = peaks_of(summary.peaks, row, words.several)
        samples = peaks_of(summary.samples, row, words.several, others=summary.peaks)
        return label(peaks, promoted, samples=samples, rates=rates, density=float(density[row])) if peaks else None

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
            "contexts": contexts(summary, row, words.several),
        }
        yield facts, partial(labelled, row)


def _histogram(found: Histogram | None, *, sign: int) -> dict[str, list[float] | list[int]] | None:
    """Edges from the lowest to the highest, with the sign of the activations, and what lies between them."""
    if found is None:
        return None
    return {"edges": [_rounded(sign * edge) for edge in found.edges[::sign]], "counts": list(found.counts[::sign])}


def _tokens(words: _Vocabulary, ids: Tensor, effects: Tensor) -> list[tuple[str, float]]:
    return [(words[token], _rounded(effect)) for token, effect in zip(ids.tolist(), effects.tolist(), strict=True)]
