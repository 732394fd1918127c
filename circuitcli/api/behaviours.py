"""What is explained, as people give it: a text, several, a file of prompts, or a behaviour."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import cast

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import Path, checked, wrong_type
from circuitcli.api.models import as_model
from circuitcli.attribution.behaviours import Behaviour
from circuitcli.attribution.examples import Example, LeftOut, Written
from circuitcli.attribution.predictions import best_predictions
from circuitcli.attribution.prompts import Prompt as Encoded
from circuitcli.errors import InputError, SettingsError
from circuitcli.models.chat import Conversation
from circuitcli.models.loading import LanguageModel
from circuitcli.reading import as_path
from circuitcli.settings.graph import Baseline, GraphSettings, Metric

# What functions that explain something take.
Prompt = str | Sequence[int] | Example | Conversation
Prompts = Prompt | Path | Iterable[Prompt] | Behaviour
_FILES = (".jsonl", ".json", ".csv", ".tsv")
SKIP_BAD = "skip_bad=True leaves such prompts out"
_HINT = "give a text, a list of texts, the Path of a file of prompts, or a Behaviour"


def find_behaviour(
    model: LanguageModel, cache: ActivationCache, n: int = 1, *, tokens: int = 4096, metric: Metric = "log-prob"
) -> Behaviour:
    """What the model predicts best of a text, beyond how frequent the token is: something to explain without a prompt.

        behaviour = circuit.find_behaviour(model, cache, 5)
        graph = circuit.find_circuit(model, coders, behaviour)

    n: how many predictions; contexts are cut to 64 tokens, and no two overlap. tokens: how much of the cache's end is
    read, whose tokens are counted before that. Raises InputError if there is no prediction in it.
    """
    if not isinstance(cache, ActivationCache):
        raise wrong_type("cache", cache, "a cache of activations", hint="collect() gives one")
    for name, number in (("n", n), ("tokens", tokens)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise wrong_type(name, number, "a whole number above zero", hint=f"for example {name}=5")
    rows = range(max(0, cache.n_tokens - tokens), cache.n_tokens)
    found = best_predictions(cache, as_model(model), rows, n)
    if not found:
        raise InputError("these tokens have no two in a row", hint="read more of the cache: tokens=")
    return Behaviour(tuple(one.example(model.tokenizer) for one in found), metric)


def as_behaviour(
    prompts: Prompts,
    *,
    target: str | int | None,
    foil: str | int | None,
    counterfactual: Written | None,
    metric: Metric | None,
    baseline: Baseline | None,
    usual: Baseline,
    chat: bool,
    left_out: LeftOut,
) -> Behaviour:
    """The behaviour that is meant. ``usual`` is the baseline where none is named.

    Raises InputError for a file without prompts, SettingsError for what is no prompt.
    """
    checked(GraphSettings, metric=metric, baseline=baseline)
    for name, token in (("target", target), ("foil", foil)):
        if token is not None and (not isinstance(token, str | int) or isinstance(token, bool)):
            raise wrong_type(name, token, "a token, as text or id", hint=f"for example {name}=' Paris'")
    if isinstance(prompts, Behaviour):
        return _changed(prompts, target, foil, counterfactual, metric, baseline)
    if metric is None:
        metric = "logit-diff" if foil is not None else "log-prob"
    if foil is not None and metric != "logit-diff":
        raise SettingsError(f"the metric {metric} takes no foil", hint="use metric='logit-diff', or leave foil= out")
    if target is not None and metric in ("cross-entropy", "kl"):
        raise SettingsError(f"the metric {metric} takes no target", hint="use log-prob or logit-diff, or no target=")
    return Behaviour.of(
        _given(prompts),
        target=target,
        foil=foil,
        counterfactual=counterfactual,
        metric=metric,
        baseline=baseline or ("counterfactual" if counterfactual is not None else usual),
        chat=chat,
        left_out=left_out,
    )


def one_prompt(
    prompt: Prompts,
    model: LanguageModel,
    *,
    several: tuple[str, str],
    target: str | int | None = None,
    foil: str | int | None = None,
    counterfactual: Written | None = None,
    metric: Metric | None = None,
    baseline: Baseline | None = None,
) -> tuple[Behaviour, tuple[Encoded, ...]]:
    """The behaviour of a single prompt, whose usual baseline is zero, and the prompt in tokens.

    several: what is done with one, and the hint, for the SettingsError where several are given.
    """
    behaviour = as_behaviour(
        prompt,
        target=target,
        foil=foil,
        counterfactual=counterfactual,
        metric=metric,
        baseline=baseline,
        usual="zero",
        chat=False,
        left_out=LeftOut(),
    )
    prompts = behaviour.encoded(model.tokenizer, model.adapter)
    if len(prompts) != 1:
        done, hint = several
        raise SettingsError(f"{len(prompts)} prompts are given, and one is {done}", hint=hint)
    return behaviour, prompts


def _changed(
    behaviour: Behaviour,
    target: object,
    foil: object,
    counterfactual: object,
    metric: Metric | None,
    baseline: Baseline | None,
) -> Behaviour:
    """A behaviour with another metric or baseline, if one is named."""
    for name, value in (("target", target), ("foil", foil), ("counterfactual", counterfactual)):
        if value is not None:
            raise SettingsError(
                f"{name} is given beside a behaviour, which has its own", hint=f"Behaviour.of(..., {name}=...)"
            )
    return replace(behaviour, metric=metric or behaviour.metric, baseline=baseline or behaviour.baseline)


def _given(prompts: object) -> FilePath | list[Example]:
    if isinstance(prompts, os.PathLike) or (isinstance(prompts, str) and _is_file(prompts)):
        return as_path(prompts)
    several = [prompts] if isinstance(prompts, str | Example | Conversation) or _is_ids(prompts) else prompts
    if not isinstance(several, Iterable):
        raise wrong_type("prompts", prompts, "a prompt", hint=_HINT)
    examples = [_example(one) for one in several]
    if len(examples) == 1:
        return examples
    return [replace(one, place=one.place or f"prompt {number}") for number, one in enumerate(examples, 1)]


def _is_file(text: str) -> bool:
    """Whether a text names a file of prompts, which no prompt does."""
    return text.lower().endswith(_FILES) and "\n" not in text and FilePath(text).is_file()


def _is_ids(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )


def _example(prompt: object) -> Example:
    if isinstance(prompt, Example):
        return prompt
    if isinstance(prompt, str):
        return Example(prompt)
    if isinstance(prompt, Conversation):
        said = tuple((message.role, message.content) for message in prompt.messages)
        return Example(said[-1][1], messages=said)
    if _is_ids(prompt):
        ids = tuple(cast(Sequence[int], prompt))
        return Example(" ".join(map(str, ids)), ids=ids)
    raise wrong_type("prompts", prompt, "a prompt", hint=_HINT)
