"""What a node is set to when it is taken away: ``(f0, e0)`` for each hook point."""

from collections.abc import Mapping
from dataclasses import dataclass

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
from circuitcli.saes.base import SparseAutoencoder

ROWS = 2048


@dataclass(frozen=True)
class Absent:
    """Codes and error of a hook point that is taken away; one row for all positions, or a row for each."""

    codes: Float[Tensor, "1 position d_sae"]
    error: Float[Tensor, "1 position d_in"]


Baseline = Mapping[HookPoint, Absent]


def zero(saes: Mapping[HookPoint, SparseAutoencoder]) -> dict[HookPoint, Absent]:
    """No feature and no error."""
    return {
        hook: Absent(sae.W_enc.new_zeros(1, 1, sae.d_sae), sae.W_enc.new_zeros(1, 1, sae.d_in))
        for hook, sae in saes.items()
    }


def mean(
    saes: Mapping[HookPoint, SparseAutoencoder], cache: ActivationCache, *, n_tokens: int
) -> dict[HookPoint, Absent]:
    """Mean code and mean error over the last ``n_tokens`` rows of the cache, which training holds out first."""
    stop = cache.n_tokens
    start = max(0, stop - n_tokens)
    return {hook: _mean(sae, cache, hook, start, stop) for hook, sae in saes.items()}


def _mean(sae: SparseAutoencoder, cache: ActivationCache, hook: HookPoint, start: int, stop: int) -> Absent:
    codes = torch.zeros(sae.d_sae, dtype=torch.float64)
    error = torch.zeros(sae.d_in, dtype=torch.float64)
    count = 0
    with torch.no_grad():
        for first, last in cache.pieces(start, stop, size=ROWS, by_text=sae.reads_context):
            coded = sae.code(cache.rows(hook, first, last).to(sae.W_enc))
            codes += coded.codes.sum(dim=0).cpu().double()
            error += coded.error.sum(dim=0).cpu().double()
            count += last - first
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


def resample(subject: Subject, cache: ActivationCache, *, seed: int) -> dict[HookPoint, Absent]:
    """Codes and errors of a piece of the cached text, drawn with the seed, position by position.

    Raises InputError if no cached block is as long as the prompt.
    """
    length = subject.prompt.ids.shape[1]
    fitting = [block.ids[:length] for block in cache.blocks(0, cache.n_tokens) if len(block.ids) >= length]
    if not fitting:
        raise InputError(f"no cached block of text has the prompt's {length} tokens", hint="use --baseline mean")
    draw = int(torch.randint(len(fitting), (1,), generator=torch.Generator().manual_seed(seed)))
    return _of_run(subject, torch.tensor([fitting[draw]], device=subject.adapter.device))


def _of_run(subject: Subject, ids: Tensor) -> dict[HookPoint, Absent]:
    run = clean_pass(subject.adapter, ids, subject.hooks)
    coded = code_run(subject.saes, run, first=subject.prompt.first)
    return {hook: Absent(part.codes, part.error) for hook, part in coded.items()}
