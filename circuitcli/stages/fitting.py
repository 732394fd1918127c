"""Saying aloud that an SAE which someone else trained does not fit the activations at hand."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.progress import track
from circuitcli.records import ActivationsRecord
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.evaluation.fit import Sample
    from circuitcli.models.loading import LanguageModel
    from circuitcli.models.partial import BlockPass
    from circuitcli.saes.exchange.place import About
    from circuitcli.saes.exchange.tensors import Foreign

logger = logging.getLogger(__name__)

FOLDER = "activations"
# A prompt with fewer tokens tells nothing of variances.
_FEWEST_OF_PROMPT = 12
RECORDED = "explained_variance"
# Hook points at which a misfitting SAE is tried.
_MOST_ELSEWHERE = 12


def warn_of_misfits(
    request: Request,
    sources: Mapping[HookPoint, SaeSource],
    loaded: "Mapping[HookPoint, Foreign]",
    model: "LanguageModel",
    *,
    clean: "BlockPass | None" = None,
    first: int = 0,
) -> None:
    """Log a warning, with numbers and what may be the cause, for each SAE from elsewhere that explains too little.

    Those that write hook points together are judged by their sum. Judged by the run's cached activations if it has them
    at the SAE's hook points, else by a prompt's clean run from position ``first`` on, else not at all.
    """
    from circuitcli.evaluation.fit import judge, n_tokens, otherwise

    # What one of several that write a hook point misses, the others may explain.
    times = Counter(written for found in loaded.values() for written in found.sae.writes)
    foreign = {hook: found for hook, found in loaded.items() if not sources[hook].is_own and found.sae.reads == (hook,)}
    alone = [
        hook
        for hook, found in foreign.items()
        if not found.about.writes_with_others and len(found.sae.writes) == times[found.sae.target] == 1
    ]
    _warn_of_sums(request, {hook: found for hook, found in foreign.items() if hook not in alone}, clean, first=first)
    for hook in track(alone, "fit of SAEs", unit="SAEs") if alone else ():
        sae, about, _ = loaded[hook]
        ends, count = list(dict.fromkeys((sae.hook, sae.target))), n_tokens(sae)
        from_cache = cached(request, ends, n_tokens=count)
        found = from_cache or _of_prompt(clean, ends, first=first)
        if found is None or found.rows[sae.hook].shape[1] != sae.d_in:
            continue
        x, lengths = found.rows[sae.hook], found.lengths
        target = found.rows[sae.target] if sae.is_transcoder else None
        made = judge(sae, x, target=target, lengths=lengths, recorded=number(about, RECORDED))
        if made.is_bad:
            others = elsewhere(request, ends, n_tokens=count)
            made = otherwise(made, sae, x, target=target, elsewhere=others, lengths=lengths)
        if made.is_bad:
            had = model.tokenizer.bos_id is not None if found.bos is None else found.bos
            cause = other_bos(about, had, is_cached=from_cache is not None) if not made.better else ""
            told = f"; {cause}" if cause else _causes(made.better)
            logger.warning("the SAE at %s %s%s", hook, made.sentence(), told)


def _writes_alone(found: "Foreign", loaded: "Mapping[HookPoint, Foreign]") -> bool:
    """Whether what it misses is missed: of several that write a hook point, the others may explain it."""
    times = Counter(written for one in loaded.values() for written in one.sae.writes)
    return not found.about.writes_with_others and len(found.sae.writes) == times[found.sae.target] == 1


def _warn_of_sums(
    request: Request, loaded: "Mapping[HookPoint, Foreign]", clean: "BlockPass | None", *, first: int
) -> None:
    """Log a warning for each hook point of which too little is explained by the sum of what these coders write."""
    from circuitcli.evaluation.fit import BATCH, LEAST_EXPLAINED, n_tokens
    from circuitcli.evaluation.together import hooks_of, reconstruction_together

    coders = {hook: found.sae for hook, found in loaded.items()}
    hooks = list(hooks_of(coders))
    count = min(map(n_tokens, coders.values()), default=0)
    found = (cached(request, hooks, n_tokens=count) or _of_prompt(clean, hooks, first=first)) if coders else None
    if found is None or any(found.rows[hook].shape[1] != coder.d_in for hook, coder in coders.items()):
        return
    n_rows = len(found.rows[hooks[0]])
    pieces = (
        {hook: rows[start : start + BATCH] for hook, rows in found.rows.items()} for start in range(0, n_rows, BATCH)
    )
    for written, explained in reconstruction_together(coders, pieces).explained_variance.items():
        if explained is not None and not explained >= LEAST_EXPLAINED:
            logger.warning(
                "the coders that write %s explain %.2f of the variance of %s tokens there together; unless coders "
                "of other layers explain the rest, these do not fit here: `circuit inspect` tells what they expect",
                written,
                explained,
                f"{n_rows:,}",
            )


def other_bos(about: "About", had: bool | None, *, is_cached: bool) -> str:
    """What to tell of an SAE that was trained with a BOS token in front of texts that ``had`` none, or without one.

    Empty if they agree or one is not known. is_cached: the activations were collected so, and stay so.
    """
    if about.bos is None or had is None or about.bos == had:
        return ""
    with_, setting = ("with", "always") if about.bos else ("without", "never")
    here = "here there is none" if about.bos else "here there is one"
    option = f"--set model.bos={setting}"
    again = f"`circuit collect {option}` into another --run" if is_cached else option
    return f"it was trained {with_} a BOS token in front, and {here}: try {again}"


def number(about: "About", name: str) -> float | None:
    """A fact of the training, if it is a number."""
    value = about.training.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _causes(named: Mapping[str, float]) -> str:
    """What to look at, where no other convention explains it."""
    return "" if named else "; is it of this model, checkpoint and hook point? `circuit inspect` tells what it expects"


def cached(request: Request, hooks: Sequence[HookPoint], *, n_tokens: int) -> "Sample | None":
    """The first rows of the run's cache at these hook points; None if one was not collected."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.evaluation.fit import Sample

    collected = {record.hook for record in request.records.of(ActivationsRecord)}
    if not {str(hook) for hook in hooks} <= collected:
        return None
    cache = ActivationCache(request.run.path / FOLDER, hooks)
    stop = min(n_tokens, cache.n_tokens)
    rows = {hook: cache.rows(hook, 0, stop) for hook in hooks}
    return Sample(rows, cache.block_lengths(0, stop), bos=cache.bos_id is not None)


def elsewhere(request: Request, hooks: Sequence[HookPoint], *, n_tokens: int) -> "dict[str, Tensor]":
    """The same rows at other hook points of the run's cache, by name; none if these are not there themselves."""
    collected = [HookPoint.parse(record.hook) for record in request.records.of(ActivationsRecord)]
    others = [hook for hook in collected if hook not in hooks][:_MOST_ELSEWHERE]
    found = cached(request, others, n_tokens=n_tokens) if others and set(hooks) <= set(collected) else None
    return {} if found is None else {str(hook): rows for hook, rows in found.rows.items()}


def _of_prompt(clean: "BlockPass | None", hooks: list[HookPoint], *, first: int) -> "Sample | None":
    from circuitcli.evaluation.fit import Sample

    if clean is None or not all(hook in clean.activations for hook in hooks):
        return None
    rows = {hook: clean.activations[hook][0, first:].float() for hook in hooks}
    n_tokens = len(rows[hooks[0]])
    return Sample(rows, [n_tokens]) if n_tokens >= _FEWEST_OF_PROMPT else None
