"""Searching for the fewest features that keep what the model predicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import checked, others_of, wrong_type
from circuitcli.api.baselines import baseline_rule
from circuitcli.api.behaviours import Prompts, as_behaviour
from circuitcli.api.circuits import head_of
from circuitcli.api.coders import SomeCoders, spliced
from circuitcli.api.models import as_model
from circuitcli.attribution.behaviours import Behaviour
from circuitcli.attribution.examples import LeftOut
from circuitcli.attribution.method import panel_of
from circuitcli.attribution.search.circuit import PromptSearch, check_coders
from circuitcli.attribution.search.circuit import search_circuit as searched
from circuitcli.attribution.search.codes import codes_of_text
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.models.loading import LanguageModel
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.search import SearchSettings


def search_circuit(
    model: LanguageModel,
    coders: SomeCoders,
    prompt: Prompts,
    cache: ActivationCache,
    *,
    by: Literal["nearest", "random", "zero", "mean"] = "nearest",
    max_kl: float = 0.1,
    layers: str | int | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    name: str = "search",
    settings: Mapping[str, object] | None = None,
) -> CircuitGraph:
    """The fewest features that keep the next token's probabilities when all others take values from other text.

        cache = circuit.collect(model, "data.txt", hooks=coders)
        graph = circuit.search_circuit(model, coders, "for i in range(", cache, max_kl=0.2)

    Hook point by hook point features are added until KL(clean || circuit) of the next token is at most ``max_kl`` nats,
    then edges between neighbouring hook points are kept that the later features need; after gpt-circuits. prompt: one,
    as of `find_circuit`. cache: activations of text to take values from: of tokens that are alike in what is kept
    (``by="nearest"``) or of ``random`` ones; all others may be ``zero`` or at their ``mean`` too. settings: errors,
    samples, nearest, position_weight, max_positions, drop, patience, min_edge and tokens, as `circuit --set search.*`.

    Raises InputError for several prompts, for coders that the search cannot take or text that is not cached,
    SettingsError for numbers out of range.
    """
    if not isinstance(cache, ActivationCache):
        raise wrong_type("cache", cache, "a cache of activations", hint="collect() gives one")
    asked, known = _asked(settings, by=by, max_kl=max_kl), as_model(model)
    graph = checked(GraphSettings, layers=None if layers is None else str(layers), sites=sites, metric="kl")
    chosen = spliced(coders, known, layers=graph.layers, sites=graph.sites)
    check_coders(chosen)
    behaviour, left_out = _behaviour(prompt), LeftOut()
    prompts = behaviour.encoded(known.tokenizer, known.adapter, positions="all", most=None, left_out=left_out)
    if len(prompts) != 1:
        raise InputError(f"a search takes one prompt, not {len(prompts)}", hint="search for each, one after the other")
    rule = baseline_rule("mean", chosen, known, cache=cache, n_tokens=graph.baseline_tokens, seed=seed)
    panel = panel_of(known, chosen, prompts, graph, rule=rule, usual="all")
    n_rows = min(asked.tokens, cache.n_tokens)
    codes = {hook: codes_of_text(cache, coder, hook, n_rows=n_rows) for hook, coder in chosen.items()}
    length = max(int(one.positions.max()) for one in codes.values()) + 1
    subject, _ = panel.subject(0)
    head = head_of(known, panel, behaviour, graph, left_out, name=name, seed=seed, method=f"search-{asked.by}")
    return searched(PromptSearch(subject, asked, codes, length, seed), head)


def _asked(settings: Mapping[str, object] | None, **named: Any) -> SearchSettings:
    free = sorted(set(SearchSettings.model_fields) - set(named))
    return checked(SearchSettings, **{**others_of(settings, example="{'samples': 32}", known=free), **named})


def _behaviour(prompt: Prompts) -> Behaviour:
    """What is kept: all of the next token's probabilities."""
    return as_behaviour(
        prompt,
        target=None,
        foil=None,
        counterfactual=None,
        metric="kl",
        baseline="mean",
        usual="mean",
        chat=False,
        left_out=LeftOut(),
    )
