"""Text that a model writes, token by token, while taps change it; with the cache of keys and values where that serves.

Taps see only the positions that are run: with a cache all of the prompt first, then one position after the other. What
a tap does at a position must depend on that position alone; else run without the cache.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import Callback, tapped
from circuitcli.models.tokenizer import Tokenizer

# The taps of one run whose first position to be changed is this one of those that are run.
TapsOf = Callable[[int], Mapping[HookPoint, Callback]]
# The next token of logits, and the logarithm of the probability that the model gives it.
Choose = Callable[[Float[Tensor, " vocab"]], int]

_CACHE, _CACHE_BEFORE = "cache", "past_key_values"


@dataclass(frozen=True)
class Continuation:
    """What a model wrote behind a prompt, and the log-probability of each token when it was chosen."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


def ends_of(adapter: ModelAdapter, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of tokens that end a text: the tokenizer's, and those that the model's settings for generation name."""
    named = getattr(getattr(adapter.model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    return tuple({int(token) for token in (*several, tokenizer.hf.eos_token_id) if token is not None})


def untapped(first: int) -> Mapping[HookPoint, Callback]:
    """No taps: the model as it is."""
    return {}


def greedy(logits: Float[Tensor, " vocab"]) -> int:
    """The most likely token."""
    return int(logits.argmax())


def sampled(temperature: float, *, seed: int) -> Choose:
    """Draws a token with the model's probabilities at a temperature; the same seed draws the same numbers."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        shares = (logits.cpu().double() / temperature).softmax(dim=-1)
        return int(torch.multinomial(shares, 1, generator=generator))

    return choose


@torch.no_grad()
def continued(
    adapter: ModelAdapter,
    ids: Sequence[int],
    n_tokens: int,
    *,
    first: int = 0,
    taps: TapsOf = untapped,
    choose: Choose = greedy,
    ends: Collection[int] = (),
    cached: bool = True,
) -> Continuation:
    """``n_tokens`` more tokens behind a prompt, or fewer if one of ``ends`` is among them, which is then the last.

    first: the first position of the prompt that taps may change. A model without a cache is run anew for each token.
    """
    whole, log_probs = [*ids], list[float]()
    begin, past = 0, None
    while len(log_probs) < n_tokens:
        logits, past = _next(adapter, whole[begin:], taps(max(0, first - begin)), past, cached=cached)
        token = choose(logits)
        exact = logits if logits.dtype == torch.float64 else logits.float()
        log_probs.append(float(exact.log_softmax(dim=-1)[token]))
        begin = len(whole) if past is not None else 0
        whole.append(token)
        if token in ends:
            break
    return Continuation(tuple(whole[len(ids) :]), tuple(log_probs))


def _next(
    adapter: ModelAdapter,
    ids: Sequence[int],
    callbacks: Mapping[HookPoint, Callback],
    past: object | None,
    *,
    cached: bool,
) -> tuple[Float[Tensor, " vocab"], object | None]:
    """Logits behind the last of these tokens, and the cache with them; None where there is none."""
    rows = torch.tensor([[*ids]], device=adapter.device)
    with tapped(adapter, callbacks):
        if not cached:
            return adapter.logits(rows)[0, -1], None
        # Older versions of transformers call it by another name.
        name = _CACHE if _CACHE in inspect.signature(adapter.model.forward).parameters else _CACHE_BEFORE
        output = adapter.model(input_ids=rows, use_cache=True, **{name: past})
    return output.logits[0, -1], getattr(output, name, None)
