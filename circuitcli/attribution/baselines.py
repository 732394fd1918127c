"""What a node is set to when it is taken away: ``(f0, e0)`` for each hook point."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution.prompts import Written, encode_prompt
from circuitcli.attribution.subject import Subject, code_run
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.models.partial import clean_pass
from circuitcli.progress import task
from circuitcli.saes.base import SparseCoder

ROWS = 2048


@dataclass(frozen=True)
class Absent:
    """Codes and error of a hook point that is taken away; one row for all positions, or a row for each."""

    codes: Float[Tensor, "1 position d_sae"]
    error: Float[Tensor, "1 position d_in"]


Baseline = Mapping[HookPoint, Absent]


def zero(saes: Mapping[HookPoint, SparseCoder]) -> dict[HookPoint, Absent]:
    """No feature and no error."""
    return {
        hook: Absent(sae.W_enc.new_zeros(1, 1, sae.d_sae), sae.W_enc.new_zeros(1, 1, sae.d_in))
        for hook, sae in saes.items()
    }


def mean(saes: Mapping[HookPoint, SparseCoder], cache: ActivationCache, *, n_tokens: int) -> dict[HookPoint, Absent]:
    """Mean code and mean error over the last ``n_tokens`` rows of the cache, which training holds out first."""
    stop = cache.n_tokens
    start = max(0, stop - n_tokens)
    return {hook: _mean(sae, cache, hook, start, stop) for hook, sae in saes.items()}


def _mean(sae: SparseCoder, cache: ActivationCache, hook: HookPoint, start: int, stop: int) -> Absent:
    codes = torch.zeros(sae.d_sae, dtype=torch.float64)
    error = torch.zeros(sae.d_in, dtype=torch.float64)
    count = 0
    pieces = cache.pieces(start, stop, size=min(ROWS, sae.rows_at_once), by_text=sae.reads_context)
    with torch.no_grad(), task(f"mean of {hook}", total=stop - start, unit="tokens") as advance:
        for first, last in pieces:
            coded = sae.code(cache.rows(hook, first, last).to(sae.W_enc))
            codes += coded.codes.sum(dim=0).cpu().double()
            error += coded.error.sum(dim=0).cpu().double()
            count += last - first
            advance(last - first)
    return Absent((codes / count).to(sae.W_enc)[None, None], (error / count).to(sae.W_enc)[None, None])


def counterfactual(subject: Subject, language_model: LanguageModel, written: Written | None) -> dict[HookPoint, Absent]:
    """Codes and errors of another prompt, position by position. Raises InputError unless it has as many tokens."""
    if written is None:
        raise InputError("the counterfactual baseline needs another prompt", hint="add --counterfactual TEXT")
    other = encode_prompt(written, language_model.tokenizer, subject.adapter)
    if other.ids.shape != subject.prompt.ids.shape:
        raise InputError(
            f"the counterfactual has {other.ids.shape[1]} tokens, the prompt {subject.prompt.ids.shape[1]}",
            hint="both must have the same number of tokens, so that positions match",
        )
    return _of_run(subject, other.ids)


def drawn_row(cache: ActivationCache, *, n_positions: int, seed: int) -> list[int]:
    """Token ids of a piece of the cached text with so many positions, BOS included, drawn with the seed.

    Raises InputError if no cached block is as long.
    """
    count = sum(1 for _ in _fitting(cache, n_positions))
    if not count:
        raise InputError(f"no cached block of text has the prompt's {n_positions} tokens", hint="use --baseline mean")
    draw = int(torch.randint(count, (1,), generator=torch.Generator().manual_seed(seed)))
    return next(islice(_fitting(cache, n_positions), draw, None))


def _fitting(cache: ActivationCache, length: int) -> Iterator[list[int]]:
    """What the blocks that are long enough begin with, one after the other: a cache may hold more than fits memory."""
    return (block.ids[:length] for block in cache.blocks(0, cache.n_tokens) if len(block.ids) >= length)


def resample(subject: Subject, ids: Sequence[int]) -> dict[HookPoint, Absent]:
    """Codes and errors of another piece of text, as `drawn_row` gives it, position by position.

    Raises InputError unless it has as many tokens as the prompt, all of them in the model's vocabulary.
    """
    if len(ids) != subject.prompt.ids.shape[1]:
        raise InputError(
            f"the row of the resample baseline has {len(ids)} tokens, the prompt {subject.prompt.ids.shape[1]}",
            hint="make the graph again",
        )
    n_ids = subject.adapter.n_token_ids
    if not all(0 <= token < n_ids for token in ids):
        raise InputError(f"the row of the resample baseline has token ids that are not in 0 to {n_ids - 1}")
    return _of_run(subject, torch.tensor([list(ids)], device=subject.adapter.device))


def _of_run(subject: Subject, ids: Tensor) -> dict[HookPoint, Absent]:
    run = clean_pass(subject.adapter, ids, subject.hooks)
    coded = code_run(subject.saes, run, first=subject.prompt.first)
    return {hook: Absent(part.codes, part.error) for hook, part in coded.items()}
