"""Cards of features: what a coder's features mean, from its cached activations or from texts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.features import scan
from circuitcli.features.contexts import SAMPLES_PER_QUANTILE
from circuitcli.features.describe import describe
from circuitcli.features.lines import Details, checked
from circuitcli.features.logits import LogitEffects, background, decoder_norms, directions, logit_effects
from circuitcli.features.scores import held_out
from circuitcli.features.surroundings import Surroundings
from circuitcli.models.loading import LanguageModel
from circuitcli.models.window import window as longest_text
from circuitcli.saes.base import SparseCoder

BATCH_SIZE = 4096
# Tokens of a text that are run at once, where the model's window is not shorter.
LONGEST = 1024


def card(
    coder: SparseCoder,
    source: ActivationCache | Sequence[str],
    *,
    model: LanguageModel,
    feature: int,
    n_tokens: int | None = None,
    n_contexts: int = 8,
    window: int = 16,
    n_quantiles: int = 4,
    n_logits: int = 8,
) -> Details:
    """What one feature means: where it is active and how strongly, which tokens it promotes, and a label.

    As `cards`, of which it is the one. Raises InputError if the coder has no such feature.
    """
    (made,) = cards(
        coder,
        source,
        model=model,
        features=[feature],
        n_tokens=n_tokens,
        n_contexts=n_contexts,
        window=window,
        n_quantiles=n_quantiles,
        n_logits=n_logits,
    )
    return made


def cards(
    coder: SparseCoder,
    source: ActivationCache | Sequence[str],
    *,
    model: LanguageModel,
    features: Iterable[int] | None = None,
    n_tokens: int | None = None,
    n_contexts: int = 8,
    window: int = 16,
    n_quantiles: int = 4,
    n_logits: int = 8,
) -> Iterator[Details]:
    """A card for each of these features, or for each that is active at all, by index.

    coder: any, crosscoders too, whose features are named by the first hook point; on the model's device. source: cached
    activations of what it reads, or texts, which the model then runs. n_tokens: how much to look at, by default all.
    Contexts are the n_contexts best blocks or documents, with ``window`` tokens on either side of the strongest, then
    n_quantiles others at quantiles of activation; promoted and suppressed are n_logits tokens each. Raises InputError
    if the coder has no such feature or there is no text.
    """
    chosen = None if features is None else _existing(coder, features)
    found = lines(
        coder,
        source,
        model=model,
        features=chosen,
        n_tokens=n_tokens,
        n_contexts=n_contexts,
        window=window,
        n_quantiles=n_quantiles,
        n_logits=n_logits,
    )
    return (checked(line, place=f"feature {line['id']}") for line in found)


def lines(
    coder: SparseCoder,
    source: ActivationCache | Sequence[str],
    *,
    model: LanguageModel,
    n_contexts: int,
    window: int,
    n_logits: int,
    n_quantiles: int = 4,
    features: Sequence[int] | None = None,
    n_tokens: int | None = None,
    n_scored: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[dict[str, Any]]:
    """`cards` as the plain values that a features file holds.

    n_scored: of cached activations so many of the last rows are left out, and labels are scored on them.
    """
    scored = None
    how: dict[str, Any] = {
        "n_contexts": n_contexts,
        "window": window,
        "n_samples": SAMPLES_PER_QUANTILE * n_quantiles,
        "features": features,
        "surroundings": Surroundings(model.tokenizer.token_strings),
    }
    if isinstance(source, ActivationCache):
        coder.check_reads({hook: source.d_model(hook) for hook in coder.reads})
        n_rows = min(n_tokens or source.n_tokens, source.n_tokens)
        n_described = _described(n_rows, n_scored)
        if n_scored:
            pieces = scan.coded_pieces(source, coder, n_described, n_rows, batch_size=batch_size)
            chosen = pieces if features is None else (piece.of(features) for piece in pieces)
            n_features = coder.d_sae if features is None else len(features)
            scored = held_out(chosen, model.tokenizer.token_strings, n_features=n_features)
        summary = scan.scan(source, coder, n_tokens=n_described, batch_size=batch_size, **how)
    else:
        summary = scan.scan_texts(model, coder, token_ids(source, model, n_tokens), **how)
    indices = summary.live if features is None else torch.tensor(features)
    effects = _effects(coder, indices, model, n_logits)
    norms = decoder_norms(coder, indices)
    return describe(coder.hook, summary, effects, model.tokenizer, features=features, norms=norms, scored=scored)


def _described(n_rows: int, n_scored: int) -> int:
    if n_scored >= n_rows:
        raise InputError(
            f"{n_scored:,} of {n_rows:,} tokens are to be kept for scores, which leaves none to describe features",
            hint="set interp.score_tokens lower, or collect more",
        )
    return n_rows - n_scored


def _existing(coder: SparseCoder, features: Iterable[int]) -> list[int]:
    chosen = sorted({*features})
    for index in chosen:
        if not 0 <= index < coder.d_sae:
            raise InputError(f"there is no feature {coder.hook}/{index}", hint=f"features are 0 to {coder.d_sae - 1}")
    return chosen


def _effects(coder: SparseCoder, indices: torch.Tensor, model: LanguageModel, n_logits: int) -> LogitEffects | None:
    rows = directions(coder, indices)
    if rows is None:
        return None
    size = model.tokenizer.vocab_size
    others = background(model.adapter, coder, vocab_size=size)
    return logit_effects(model.adapter, rows, n_top=n_logits, vocab_size=size, others=others)


def token_ids(texts: Sequence[str], model: LanguageModel, n_tokens: int | None) -> list[list[int]]:
    """Ids of the texts without BOS, long ones in pieces, ``n_tokens`` in all. Raises InputError if there is none."""
    if isinstance(texts, str):
        texts = [texts]
    size = min(longest_text(model.adapter.model.config) or LONGEST, LONGEST) - (model.tokenizer.bos_id is not None)
    pieces: list[list[int]] = []
    left = n_tokens
    for ids in model.tokenizer.encode_all(texts):
        own = list(model.tokenizer.own_part(ids))[: left if left is None else max(left, 0)]
        left = None if left is None else left - len(own)
        pieces += [own[start : start + size] for start in range(0, len(own), size)]
    if not pieces:
        raise InputError(
            "the texts have no token to look at features on", hint="give texts in which there is something"
        )
    return pieces
