"""What a model goes on to write when some features are turned up or down.

At every position from the prompt's first on (BOS stays as it is), and at each that is written: ``f`` is encoded from
the activation of the run at hand, the scaled features become ``factor * f``, all else that is decoded stays, and so
does the error. So ``x' = x + sum of (factor - 1) f_i scale W_dec[i]``, which goes on and is not encoded again; later
coders encode what arrives. Factor 0 takes a feature away, 1 changes nothing.

How much the model differs is told by the divergence ``KL(clean || steered)`` of the next token, in nats, before each
token of both continuations: along the clean one, and along the steered one, the same text being read by both models.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.metrics import log_softmax
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.generation import Choose, Continuation, continued, greedy, sampled, untapped
from circuitcli.models.taps import Callback, tapped
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.models.window import window
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Edit, splice

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="Texts")
Factors = Mapping[HookPoint, Mapping[int, float]]
# Nats that the log-probability of a token may differ between a run with a cache and one without, in full precision and
# in half; more says that a model's cache is not what the taps change.
_TOLERANCE, _TOLERANCE_HALF = 0.02, 0.5
_NAMED = 12


@dataclass(frozen=True)
class Seen:
    """A scaled feature: how strong it was at most, before it was scaled, and at how many positions it was active."""

    node: NodeId
    factor: float
    largest_clean: float
    active_clean: int
    largest_steered: float
    active_steered: int

    @property
    def is_silent(self) -> bool:
        """Whether it was active nowhere, so that its factor changed nothing."""
        return self.active_clean == self.active_steered == 0


@dataclass(frozen=True)
class Written:
    """A continuation, and KL(clean || steered) before each of its tokens, in nats."""

    ids: tuple[int, ...]
    divergence: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over its tokens."""
        return sum(self.divergence) / len(self.divergence)


@dataclass(frozen=True)
class Steered:
    """What the model writes as it is and with features scaled, and how active these were in each text."""

    clean: Written
    steered: Written
    features: tuple[Seen, ...]


@dataclass(frozen=True)
class Texts:
    """What a model writes behind a prompt, as it is and with features scaled.

    kl_clean, kl_steered: KL(clean || steered) before each token of the clean and of the steered text, in nats.
    """

    clean: str
    steered: str
    tokens_clean: tuple[str, ...]
    tokens_steered: tuple[str, ...]
    kl_clean: tuple[float, ...]
    kl_steered: tuple[float, ...]

    @classmethod
    def of(cls: type[T], found: Steered, tokenizer: Tokenizer) -> T:
        """Both continuations in the tokenizer's words."""
        return cls(
            clean=tokenizer.decode(found.clean.ids),
            steered=tokenizer.decode(found.steered.ids),
            tokens_clean=tuple(tokenizer.token_strings(found.clean.ids)),
            tokens_steered=tuple(tokenizer.token_strings(found.steered.ids)),
            kl_clean=found.clean.divergence,
            kl_steered=found.steered.divergence,
        )


class Steering:
    """A model in which features are scaled. ``first``: the first position of texts that is not BOS."""

    def __init__(self, adapter: ModelAdapter, coders: Coders, factors: Factors, *, first: int) -> None:
        self.adapter, self.factors, self.first = adapter, factors, first
        self.coders = Coders({hook: coders[hook] for hook in factors})

    def taps(self, first: int) -> Mapping[HookPoint, Callback]:
        """Of one run whose first position to be changed is this one."""
        return splice(self.coders, Edit(codes=self._change), first=first)

    def _change(self, hook: HookPoint, codes: Float[Tensor, "row position d_sae"]) -> Tensor:
        """What is added to codes."""
        indices = list(self.factors[hook])
        less_one = codes.new_tensor([self.factors[hook][index] - 1 for index in indices])
        change = torch.zeros_like(codes)
        change[..., indices] = codes[..., indices] * less_one
        return change

    @property
    def needs_whole(self) -> bool:
        """Whether what a coder does at a position depends on others, so that no cache serves."""
        return any(coder.reads_context for coder in self.coders.values())

    @torch.no_grad()
    def logits(self, ids: Sequence[int], *, clean: bool) -> Float[Tensor, "position vocab"]:
        """Of a whole text, in one run."""
        rows = torch.tensor([[*ids]], device=self.adapter.device)
        with tapped(self.adapter, {} if clean else self.taps(self.first)):
            return self.adapter.logits(rows)[0]

    @torch.no_grad()
    def codes(self, ids: Sequence[int], *, clean: bool) -> dict[HookPoint, Float[Tensor, "position d_sae"]]:
        """Of a whole text, as they are encoded in the run, before they are scaled."""
        found: dict[HookPoint, Tensor] = {}

        def look(hook: HookPoint, codes: Tensor) -> Tensor | None:
            found[hook] = codes[0]
            return None if clean else self._change(hook, codes)

        rows = torch.tensor([[*ids]], device=self.adapter.device)
        with tapped(self.adapter, splice(self.coders, Edit(codes=look), first=self.first)):
            self.adapter.logits(rows)
        return found


def steer(
    adapter: ModelAdapter,
    coders: Coders,
    ids: Sequence[int],
    factors: Factors,
    *,
    first: int,
    n_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    ends: Sequence[int] = (),
    cached: bool = True,
) -> Steered:
    """What the model writes behind a prompt as it is, and with these features times their factors.

    temperature: 0 takes the most likely token each time; else tokens are drawn, both times by the same random numbers.
    Raises InputError for features that a coder lacks, for a prompt that leaves no room, and where no feature is active
    in the prompt and in what the model writes by itself: then nothing can be steered.
    """
    steering = Steering(adapter, coders, check_factors(coders, factors), first=first)
    n_tokens = _room(adapter, len(ids), n_tokens)

    def choose() -> Choose:
        # Anew for each, so that both draw the same numbers.
        return greedy if temperature == 0 else sampled(temperature, seed=seed)

    def written(*, clean: bool) -> Continuation:
        return _written(steering, ids, n_tokens, choose, ends=ends, clean=clean, cached=cached)

    own = written(clean=True)
    before = steering.codes((*ids, *own.ids), clean=True)
    _check_active(before, steering.factors)
    other = written(clean=False)
    after = steering.codes((*ids, *other.ids), clean=False)
    return Steered(
        clean=Written(own.ids, _divergence(steering, ids, own.ids)),
        steered=Written(other.ids, _divergence(steering, ids, other.ids)),
        features=tuple(
            Seen(NodeId(hook, index), factor, *_activity(before[hook][:, index]), *_activity(after[hook][:, index]))
            for hook, of_hook in steering.factors.items()
            for index, factor in of_hook.items()
        ),
    )


def check_factors(coders: Coders, factors: Factors) -> Factors:
    """The same factors. Raises InputError for a feature that is not there."""
    for hook, of_hook in factors.items():
        if hook not in coders:
            raise InputError(f"no SAE at {hook}", hint=f"there are SAEs at {' '.join(map(str, coders))}")
        for index in of_hook:
            if index >= coders[hook].d_sae:
                raise InputError(f"{hook} has no feature {index}", hint=f"features are 0 to {coders[hook].d_sae - 1}")
    return factors


def _room(adapter: ModelAdapter, n_prompt: int, n_tokens: int) -> int:
    """How many tokens fit behind the prompt. Raises InputError if none does."""
    longest = window(adapter.model.config)
    if longest is None or n_prompt + n_tokens <= longest:
        return n_tokens
    if n_prompt >= longest:
        raise InputError(
            f"the prompt has {n_prompt} tokens, and the model's window ends there", hint="shorten the prompt"
        )
    logger.warning("%d tokens are written, not %d: the model's window ends there", longest - n_prompt, n_tokens)
    return longest - n_prompt


def _written(
    steering: Steering,
    ids: Sequence[int],
    n_tokens: int,
    choose: Callable[[], Choose],
    *,
    ends: Sequence[int],
    clean: bool,
    cached: bool,
) -> Continuation:
    """A continuation; with a cache only where that gives what whole runs give, which is looked at."""
    taps = untapped if clean else steering.taps

    def run(*, with_cache: bool) -> Continuation:
        return continued(
            steering.adapter,
            ids,
            n_tokens,
            first=steering.first,
            taps=taps,
            choose=choose(),
            ends=ends,
            cached=with_cache,
        )

    if not cached or (steering.needs_whole and not clean):
        return run(with_cache=False)
    found = run(with_cache=True)
    if _is_right(steering, ids, found, clean=clean):
        return found
    logger.debug("the model's cache does not give what whole runs give: each token takes a run of all before it")
    return run(with_cache=False)


def _is_right(steering: Steering, ids: Sequence[int], found: Continuation, *, clean: bool) -> bool:
    """Whether the tokens had the probabilities that one run of all of them gives."""
    logits = steering.logits([*ids, *found.ids[:-1]], clean=clean)[len(ids) - 1 :]
    chosen = torch.tensor(found.ids, device=logits.device)[:, None]
    expected = log_softmax(logits).gather(1, chosen)[:, 0].cpu().double()
    is_half = steering.adapter.dtype in (torch.bfloat16, torch.float16)
    apart = (expected - torch.tensor(found.log_probs, dtype=torch.float64)).abs().max()
    return float(apart) <= (_TOLERANCE_HALF if is_half else _TOLERANCE)


def _divergence(steering: Steering, ids: Sequence[int], more: Sequence[int]) -> tuple[float, ...]:
    """KL(clean || steered) before each token of a continuation that both models read."""
    whole = [*ids, *more[:-1]]
    clean, steered = (log_softmax(steering.logits(whole, clean=is_clean)[len(ids) - 1 :]) for is_clean in (True, False))
    return tuple((clean.exp() * (clean - steered)).sum(dim=-1).clamp_min(0).tolist())


def _activity(codes: Float[Tensor, " position"]) -> tuple[float, int]:
    """The code furthest from zero, and how many are not zero."""
    return float(codes[codes.abs().argmax()]), int((codes != 0).sum())


def _check_active(codes: Mapping[HookPoint, Float[Tensor, "position d_sae"]], factors: Factors) -> None:
    """Raise InputError, naming some that are active, if no feature that is scaled is."""
    if any(bool((codes[hook][:, list(of_hook)] != 0).any()) for hook, of_hook in factors.items()):
        return
    names = [NodeId(hook, index).feature for hook, of_hook in factors.items() for index in of_hook]
    alive = " ".join(_most_active(codes))
    raise InputError(
        f"nothing to steer: {' '.join(names)} {'is' if len(names) == 1 else 'are'} active nowhere in the prompt and in "
        "what the model writes behind it",
        hint=f"active there: {alive}" if alive else "scale other features, or give a prompt in which they are active",
    )


def _most_active(codes: Mapping[HookPoint, Float[Tensor, "position d_sae"]]) -> list[str]:
    """Names of the features that are furthest from zero at the first hook point."""
    hook, values = next(iter(codes.items()))
    largest = values.abs().amax(dim=0).topk(min(_NAMED, values.shape[1]))
    pairs = zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
    return [NodeId(hook, index).feature for size, index in pairs if size > 0]
