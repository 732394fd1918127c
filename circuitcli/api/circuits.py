"""Finding the circuit behind a behaviour."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import checked, others_of, wrong_type
from circuitcli.api.baselines import baseline_rule
from circuitcli.api.behaviours import SKIP_BAD, Prompts, as_behaviour
from circuitcli.api.coders import SomeCoders, digests, spliced
from circuitcli.api.models import as_model
from circuitcli.attribution import heads
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.behaviours import Behaviour
from circuitcli.attribution.examples import LeftOut, Written, as_line, digest_of
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.attribution.method import check_pins, gradient_facts, gradient_graph, naive_graph, panel_of
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.panel import Panel
from circuitcli.errors import SettingsError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import parse_pins
from circuitcli.models.loading import LanguageModel
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import BY_INFLUENCE, OF_FROZEN, Baseline, GraphSettings, Metric

Method = Literal["ig", "atp", "relp", "gim", "exact", "naive", "frozen"]
# Settings of graphs that are no arguments.
_SELECTION = ("strongest", "min_share", "min_effect", *BY_INFLUENCE, "edges_exact", "edge_points")
_OF_NAIVE = ("threshold_exp", "thin", "pin", "to")
_FREE = ("baseline_tokens", "batch_size", "heads", *_SELECTION, *_OF_NAIVE, *OF_FROZEN[1:])
_OF_GRADIENTS = ("ig_steps", "refine", "down", "up")
# Arguments that are called otherwise than the settings that they are.
_CALLED = {"ig_steps": "steps"}


def find_circuit(
    model: LanguageModel,
    coders: SomeCoders,
    prompts: Prompts,
    *,
    target: str | int | None = None,
    foil: str | int | None = None,
    counterfactual: Written | None = None,
    metric: Metric | None = None,
    baseline: Baseline | None = None,
    cache: ActivationCache | None = None,
    positions: Literal["all", "last", "sum", "spans"] | None = None,
    layers: str | int | None = None,
    sites: str | Sequence[str] | None = None,
    method: Method = "ig",
    steps: int | None = None,
    refine: int | None = None,
    down: int | None = None,
    up: int | None = None,
    n_prompts: int | None = None,
    skip_bad: bool = False,
    chat: bool = False,
    seed: int = 0,
    name: str = "circuit",
    settings: Mapping[str, object] | None = None,
) -> CircuitGraph:
    """The features and errors behind what the model predicts, and what each contributes to which other.

        graph = circuit.find_circuit(model, coders, "for i in range(", down=5, up=3)
        graph = circuit.find_circuit(model, coders, prompt, target=" Paris", foil=" Rome")
        graph = circuit.find_circuit(model, coders, Path("pairs.jsonl"), metric="logit-diff", baseline="counterfactual")
        graph.save("graph.jsonl"); nodes, edges = graph.to_pandas(); graph       # draws itself in a notebook

    The prompts are *run* through the model and *coded* by the coders; every node's *effect* on the metric is taken by
    integrated gradients (``ig``), attribution patching (``atp``), one gradient by a rule (``relp``, ``gim``) or by
    ablating each node (``exact``), with ``refine`` so many of the strongest of each hook point ablated in any case; the
    ``down`` strongest of each sign and hook point are *selected*; the ``up`` strongest *edges* into each are followed
    upwards; what is kept is *assemble*d to a graph (Marks et al. 2024, arXiv:2403.19647). ``naive``
    ablates one node at a time instead. ``frozen`` is circuit-tracer's attribution graph of one prompt: direct effects
    with attention patterns and norm denominators held constant, pruned by influence on the likeliest tokens.

    prompts: a text, token ids, a list of these, the Path of a file (JSON lines, feature-circuits' pairs, CSV of EAP-IG
    and MIB), or a `Behaviour`. Effects and edges of several are means, with standard errors. target: the token whose
    probability is explained, by default the model's most likely next one; with a foil the difference of their logits.
    metric: log-prob, logit-diff, cross-entropy or kl. baseline: what a node is set to when it is taken away: its mean
    over cached text (``mean``: of ``cache``, else of the run that the coders are from, else of the model's usual text,
    which is read then), ``zero``, ``resample`` or ``counterfactual``. positions: nodes at each position (``all``), at
    the last one, summed over positions, or for named spans. layers, sites: which coders take part, by default all.
    settings: baseline_tokens, batch_size, heads, strongest, min_share, min_effect, edges_exact, edge_points, of
    ``naive`` threshold_exp, thin, pin and to, of ``frozen`` max_nodes and check_edges, of both kinds of gradient graph
    node_threshold and edge_threshold, as `circuit --set graph.*`.

    Raises InputError for prompts, targets or coders that do not fit the model, SettingsError for arguments that do not
    go together.
    """
    chosen = _settings(
        settings,
        method,
        positions=positions,
        layers=None if layers is None else str(layers),
        sites=sites,
        down=down,
        up=up,
        ig_steps=steps,
        refine=refine,
        n_prompts=n_prompts,
        skip_bad=skip_bad,
    )
    left_out = LeftOut(allowed=skip_bad, hint=SKIP_BAD)
    behaviour = as_behaviour(
        prompts,
        target=target,
        foil=foil,
        counterfactual=counterfactual,
        metric=metric,
        baseline=baseline,
        usual="zero" if method in ("naive", "frozen") else "mean",
        chat=chat,
        left_out=left_out,
    )
    chosen = chosen.model_copy(update={"metric": behaviour.metric})
    panel = _panel(as_model(model), coders, behaviour, chosen, cache, left_out, seed=seed, method=method)
    facts: dict[str, Any] = {"name": name, "seed": seed, "chat": chat or None}
    if method == "naive":
        search = NaiveSearch(panel, chosen, parse_pins(chosen.pin), seed)
        check_pins(search)
        facts |= {"method": "naive", "threshold": search.threshold, "to": chosen.to}
        return naive_graph(search, head_of(model, panel, behaviour, chosen, left_out, **facts), search.part)
    if method == "frozen":
        frozen = FrozenSearch.of(panel, chosen)
        tokens = model.tokenizer.token_strings(list(frozen.nodes.logits))
        facts |= frozen.facts(tokens, frozen.checks(seed))
        return frozen.graph(head_of(model, panel, behaviour, chosen, left_out, **facts))
    head = head_of(model, panel, behaviour, chosen, left_out, **facts, **gradient_facts(chosen))
    return gradient_graph(panel, chosen, head)


def _settings(others: Mapping[str, object] | None, method: Method, **named: Any) -> GraphSettings:
    """The arguments as settings. Raises SettingsError for those that do not go together."""
    if method not in get_args(Method):
        raise wrong_type("method", method, "a method", hint="methods are ig, atp, relp, gim, exact, naive and frozen")
    free = others_of(others, example="{'baseline_tokens': 4096}", known=_FREE)
    by_gradients = method not in ("naive", "frozen")
    if not by_gradients and (given := [name for name in _OF_GRADIENTS if named[name] is not None]):
        name = _CALLED.get(given[0], given[0])
        raise SettingsError(f"{name} is of ig, atp, relp, gim and exact, not of {method}", hint=f"leave out {name}=")
    if method == "frozen" and named["positions"] not in (None, "all"):
        raise SettingsError("nodes of a frozen graph are at each position", hint="leave out positions=")
    of_method = {"method": method} if by_gradients else {"frozen": True} if method == "frozen" else {}
    return checked(GraphSettings, called=_CALLED, **{**free, **named, **of_method})


def _panel(
    model: LanguageModel,
    coders: SomeCoders,
    behaviour: Behaviour,
    settings: GraphSettings,
    cache: ActivationCache | None,
    left_out: LeftOut,
    *,
    seed: int,
    method: Method,
) -> Panel:
    """The prompts, to be run through the coders of the circuit."""
    chosen = spliced(coders, model, layers=settings.layers, sites=settings.sites)
    prompts = behaviour.encoded(
        model.tokenizer, model.adapter, positions=settings.positions, most=settings.n_prompts, left_out=left_out
    )
    rule = baseline_rule(behaviour.baseline, chosen, model, cache=cache, n_tokens=settings.baseline_tokens, seed=seed)
    return panel_of(model, chosen, prompts, settings, rule=rule, usual="sum" if method == "naive" else "all")


def head_of(
    model: LanguageModel,
    panel: Panel,
    behaviour: Behaviour,
    settings: GraphSettings,
    left_out: LeftOut,
    **facts: Any,
) -> GraphRecord:
    """The head of a graph of these prompts, with these facts about how it was made."""
    return heads.head_of(
        panel,
        model,
        baseline=behaviour.baseline,
        model=model.name,
        dtype=str(model.adapter.dtype).removeprefix("torch."),
        digests=digests(panel.coders),
        baseline_tokens=settings.baseline_tokens,
        **_of_prompts(behaviour, panel, n_bad=left_out.n),
        **facts,
    )


def _of_prompts(behaviour: Behaviour, panel: Panel, *, n_bad: int) -> dict[str, Any]:
    """What a head tells of the prompts, so that the graph can be tested on them; ``n_bad`` others were left out."""
    places = {prompt.place for prompt in panel.prompts}
    kept = [example for example in behaviour.examples if example.place in places]
    if panel.n_prompts > 1:
        # Of a file that holds others too, those that were used.
        is_file = bool(behaviour.source) and not n_bad and len(kept) == len(behaviour.examples)
        # Written down in full: a file may change or go, and holds no targets that were given beside it.
        of_source = {"prompts": behaviour.source} if is_file else {}
        return {**of_source, "examples": [*map(as_line, kept)], "prompts_digest": digest_of(kept)}
    # What a head has no other place for.
    is_plain = not kept[0].spans and kept[0].messages is None
    facts: dict[str, Any] = {} if is_plain else {"examples": [as_line(kept[0])]}
    if isinstance(kept[0].counterfactual, str):
        facts["counterfactual"] = kept[0].counterfactual
    elif isinstance(kept[0].counterfactual, Sequence):
        facts["counterfactual_ids"] = tuple(kept[0].counterfactual)
    if behaviour.baseline == "resample":
        rule = panel.baseline_of
        assert isinstance(rule, BaselineRule)
        facts["baseline_ids"] = tuple(rule.drawn(panel.subject(0)[0], (0,))[0])
    return facts
