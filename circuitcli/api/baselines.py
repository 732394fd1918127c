"""What nodes are set to when they are taken away, and the cached text that this is taken from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.storage.shards import hook_path
from circuitcli.api.arguments import wrong_type
from circuitcli.api.collecting import collect
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.progress import note
from circuitcli.saes.coders import Coders

_ACTIVATIONS = "activations"


def baseline_rule(
    kind: str,
    coders: Coders,
    model: LanguageModel,
    *,
    cache: ActivationCache | None,
    n_tokens: int,
    seed: int,
    rows: Mapping[int, Sequence[int]] | None = None,
) -> BaselineRule:
    """The rule of a kind of baseline. Text that it needs is that of the cache, else of the run that the coders are
    from, else the first tokens of the model's usual text, which is read now."""
    if cache is not None and not isinstance(cache, ActivationCache):
        raise wrong_type("cache", cache, "a cache of activations", hint="collect() gives one")
    hooks = {"mean": coders.hooks, "resample": ()}.get(kind)
    found = None if hooks is None else _cache(coders, hooks, model, cache, n_tokens=n_tokens)
    return BaselineRule(kind, coders, found, n_tokens=n_tokens, seed=seed, rows=rows or {})


def _cache(
    coders: Coders,
    hooks: tuple[HookPoint, ...],
    model: LanguageModel,
    cache: ActivationCache | None,
    *,
    n_tokens: int,
) -> ActivationCache:
    if cache is not None:
        if missing := [str(hook) for hook in hooks if hook not in cache.hooks]:
            raise InputError(
                f"the baseline needs cached activations of {' '.join(missing)}",
                hint="collect them, or leave cache= out, or use baseline='zero'",
            )
        return cache
    for place in dict.fromkeys(_run_of(coder.origin) for coder in coders.values()):
        if place is not None and all(hook_path(place, hook, 0).is_file() for hook in hooks):
            return ActivationCache(place, hooks)
    note(f"the baseline is taken from {n_tokens:,} tokens of the model's usual text; cache= gives another text")
    return collect(model, hooks=hooks or coders.hooks, tokens=n_tokens)


def _run_of(origin: Path | None) -> Path | None:
    """The cache of the run in whose folder of coders a coder lies."""
    return None if origin is None else origin.parent.parent / _ACTIVATIONS
