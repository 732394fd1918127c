"""What both graph stages share: the subject, the baseline, the head, the graph file."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import graphs, records
from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, as_line, digest_of
from circuitcli.errors import SettingsError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint, parse_layers, parse_pins, parse_slice
from circuitcli.records import ActivationsRecord, GraphRecord, Record
from circuitcli.runs import Fingerprint, atomic, file_digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.behaviours import check_text, own_examples, text_digests
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.inputs import activation_digests, open_cache, read_graphs
from circuitcli.stages.naming import GRAPH, chosen_name, valid_name
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, at_neuronpedia, graph_sources, load_saes, sae_sources
from circuitcli.training.plan import n_held_out

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import BaselineRule
    from circuitcli.attribution.panel import Panel
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.coders import Coders
    from circuitcli.saes.exchange.tensors import Foreign

logger = logging.getLogger(__name__)

# Of a slice of layers that is read without the model; no release has more.
_MOST_LAYERS = 1024

# Where the model runs and how many rows at once changes rounding only; the file to extend is an input.
_NO_MATTER = (*PLACEMENT, "graph.batch_size", "graph.extend", "graph.name", "graph.prompts")


@dataclass(frozen=True)
class Task:
    """One graph to make. ``asked`` holds the prompts that are asked for, None for the run's own text."""

    request: Request
    stage: str
    name: str
    positions: str
    baseline: str
    sources: Mapping[HookPoint, SaeSource]
    foreign: tuple[str, ...]
    asked: tuple[Example, ...] | None
    left_out: LeftOut

    @property
    def settings(self) -> GraphSettings:
        """The section of the settings that says what is explained."""
        return self.request.settings.graph

    @property
    def takes_own_text(self) -> bool:
        """Whether no prompt is given, so that predictions of the run's own text are explained."""
        return self.asked is None

    @property
    def searches(self) -> bool:
        """Whether the circuit is searched for by resampling."""
        return self.stage == "graph-naive" and self.request.settings.search.by is not None

    @property
    def n_search_rows(self) -> int:
        """How many of the run's first tokens a search takes values from: as many as it asks for, none held out."""
        # A run without text is refused after its name is chosen, which looks at the fingerprint.
        n_rows = min((record.n_tokens for record in self.request.records.of(ActivationsRecord)), default=0)
        return min(self.request.settings.search.tokens, n_rows - n_held_out(self.request.settings, n_rows=n_rows))

    @property
    def keeps_prompts(self) -> bool:
        """Whether the prompts are those of a file, or several, of which a head cannot tell all."""
        return self.settings.prompts is not None or (self.takes_own_text and self.settings.sequences > 1)

    @property
    def entry(self) -> str:
        """The name of the graph's entry in the manifest."""
        return GRAPH.entry(self.name)

    @property
    def path(self) -> Path:
        """The graph's file."""
        return GRAPH.path(self.request.run, self.name)

    def fingerprint(self) -> Fingerprint:
        """Over the settings that the stage reads, the SAEs, the cache if it is needed, and what is extended."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        inputs["command"] = self.stage
        if self.baseline in ("mean", "resample"):
            inputs |= activation_digests(self.request)
        if self.takes_own_text:
            inputs |= text_digests(self.request)
        if self.settings.prompts is not None and self.asked is not None:
            inputs["prompts"] = digest_of(self.asked)
        if self.settings.extend is not None:
            inputs["graph to extend"] = file_digest(Path(self.settings.extend))
        prefixes = ["graph.", "model.", "seed", "sae_path"]
        if self.searches:
            inputs |= activation_digests(self.request) | {"tokens to draw from": str(self.n_search_rows)}
            prefixes.append("search.")
        return fingerprint(self.request, prefixes, inputs, without=(*_NO_MATTER, *self.foreign))


def task_of(request: Request, stage: str, *, name: str, positions: str, baseline: str, foreign: Iterable[str]) -> Task:
    """The graph that a request asks for.

    Raises SettingsError without a prompt or for settings that do not go together, InputError without SAEs.
    """
    settings = request.settings.graph
    check_settings(settings)
    check_text(request, stage=stage)
    _warn_of_unused(settings, baseline=settings.baseline or baseline)
    if settings.extend is not None:
        read_graphs(Path(settings.extend))
    left_out = LeftOut(allowed=settings.skip_bad)
    task = Task(
        request=request,
        stage=stage,
        name=settings.name or name,
        positions=positions,
        baseline=settings.baseline or baseline,
        sources=sae_sources(
            request, stage=stage, layers=_named_layers(settings), within=_plain_slice(settings) or None
        ),
        foreign=tuple(f"graph.{field}" for field in foreign),
        # A pipe can be read once only.
        asked=asked_examples(settings, left_out=left_out),
        left_out=left_out,
    )
    chosen = chosen_name(
        request.run,
        GRAPH,
        asked=settings.name,
        default=name,
        fingerprint=task.fingerprint(),
        force=request.force,
    )
    return replace(task, name=chosen)


def _named_layers(settings: GraphSettings) -> set[int]:
    """Layers at which SAEs of a whole release are wanted: those of pins, and of a slice that no model is needed for."""
    return {*_plain_slice(settings), *(hook.layer for hook in parse_pins(settings.pin))}


def _plain_slice(settings: GraphSettings) -> Collection[int]:
    """The layers of the graph where no model is needed to tell them, as it is for ``-2:``; else nothing."""
    named = parse_slice(settings.layers or "0:0")
    start, stop = named.start or 0, named.stop
    is_plain = stop is not None and min(start, stop) >= 0
    return range(start, min(stop, _MOST_LAYERS), named.step or 1) if is_plain else ()


def check_settings(settings: GraphSettings) -> None:
    """Raise SettingsError for a name that is none, and for settings of which one makes no sense with another."""
    metric = settings.metric
    if settings.name is not None:
        valid_name(settings.name)
    if metric == "cross-entropy" and settings.positions == "last":
        raise SettingsError(
            "nothing at the last position can change the cross-entropy, which ends with the prompt's last token",
            hint="use --positions all or sum, or --metric log-prob",
        )
    if metric == "logit-diff" and settings.foil is None and settings.prompts is None:
        raise SettingsError("the metric logit-diff needs a foil", hint="add --foil TOKEN")
    if settings.foil is not None and metric != "logit-diff":
        raise SettingsError(f"the metric {metric} takes no foil", hint="add --metric logit-diff, or leave out --foil")
    if settings.target is not None and metric in ("cross-entropy", "kl"):
        raise SettingsError(
            f"the metric {metric} takes no target", hint="use --metric log-prob or logit-diff, or leave out --target"
        )


def _warn_of_unused(settings: GraphSettings, *, baseline: str) -> None:
    if (settings.counterfactual or settings.counterfactual_ids) is not None and baseline != "counterfactual":
        logger.warning("the baseline %s uses no counterfactual prompt; --baseline counterfactual does", baseline)


@dataclass(frozen=True)
class Prepared:
    """The panel of prompts that is explained, through which coders, and the head's facts that it does not hold.

    neuronpedia: what it calls the coders that it has. kept: the prompts that can be used, of a file that holds several.
    """

    language_model: "LanguageModel"
    panel: "Panel"
    rule: "BaselineRule"
    digests: Mapping[HookPoint, str]
    neuronpedia: Mapping[str, str]
    kept: "Sequence[Example]"


def prepare(task: Task) -> Prepared:
    """Load model and coders, encode the prompts, and get ready to run them."""
    from circuitcli.attribution.method import panel_of
    from circuitcli.models.loading import load_model

    request, settings = task.request, task.settings
    language_model = load_model(request.settings.model)
    coders, sources, loaded = load_coders(request, task.sources, settings, language_model)
    examples, prompts = encoded_prompts(task, language_model)
    rule = baseline_rule(request, task.baseline, coders, settings)
    panel = panel_of(language_model, coders, prompts, settings, rule=rule, usual=task.positions)
    subject, _ = panel.subject(0)
    clean, first = subject.clean, subject.first
    warn_of_misfits(request, sources, loaded, language_model, clean=clean, first=first)
    digests = {hook: source.digest for hook, source in sources.items()}
    return Prepared(language_model, panel, rule, digests, at_neuronpedia(sources), examples)


def load_coders(
    request: Request,
    available: Mapping[HookPoint, SaeSource],
    settings: GraphSettings,
    language_model: "LanguageModel",
) -> "tuple[Coders, dict[HookPoint, SaeSource], dict[HookPoint, Foreign]]":
    """The coders of a circuit at the layers and sites of the settings. Raises InputError if they do not fit."""
    from circuitcli.attribution.subject import fitted
    from circuitcli.saes.coders import Coders

    adapter = language_model.adapter
    layers = None if settings.layers is None else parse_layers(settings.layers, n_layers=adapter.n_layers)
    sites = None if settings.sites is None else {part for text in settings.sites for part in text.split(",")}
    sources = graph_sources(available, layers=layers, sites=sites)
    model = request.settings.model.name
    loaded = load_saes(sources, sources, model=model, adapter=adapter)
    return Coders.of(fitted(found.sae, adapter) for found in loaded.values()), sources, loaded


def encoded_prompts(task: Task, language_model: "LanguageModel") -> "tuple[tuple[Example, ...], tuple[Prompt, ...]]":
    """The prompts that are asked for, or predictions of the run's own text: as they were given, and in tokens."""
    from circuitcli.attribution.prompts import Needs, encode_all

    settings, request = task.settings, task.request
    examples = task.asked or own_examples(request.settings, request.records, request.run.path, language_model)
    needs = Needs.of(metric=settings.metric, baseline=task.baseline, spans=settings.positions == "spans")
    prompts = encode_all(
        examples,
        language_model.tokenizer,
        language_model.adapter,
        needs=needs,
        left_out=task.left_out,
        most=settings.n_prompts,
    )
    places = {prompt.place for prompt in prompts}
    return tuple(example for example in examples if example.place in places), prompts


def baseline_rule(
    request: Request,
    kind: str,
    coders: "Coders",
    settings: GraphSettings,
    *,
    rows: Mapping[int, Sequence[int]] | None = None,
    seed: int | None = None,
) -> "BaselineRule":
    """The rule of a kind of baseline; ``rows`` holds token ids that `resample` goes to, by the number of the prompt.

    seed: that of the rows drawn, by default that of the settings.

    Raises InputError if it needs a cache that is not there.
    """
    from circuitcli.attribution.baselines import BaselineRule

    cache = None
    if kind in ("mean", "resample"):
        hooks = coders.hooks if kind == "mean" else ()
        cache = open_cache(request, hooks, purpose=f"the {kind} baseline")
    return BaselineRule(
        kind,
        coders,
        cache,
        n_tokens=settings.baseline_tokens,
        seed=request.settings.seed if seed is None else seed,
        rows=rows or {},
    )


def head_of(task: Task, prepared: Prepared, *, method: str, **facts: Any) -> GraphRecord:
    """The head of the graph. Raises InputError if the graph that is to be extended is another one's."""
    from circuitcli.attribution import heads

    settings, panel, rule = task.settings, prepared.panel, prepared.rule
    drawn = None
    if panel.n_prompts == 1 and rule.kind == "resample":
        drawn = tuple(rule.drawn(panel.subject(0)[0], (0,))[0])
    of_one: dict[str, Any] = {
        "counterfactual": settings.counterfactual,
        "counterfactual_ids": settings.counterfactual_ids,
        "baseline_ids": drawn,
        **({"foil": settings.foil} if settings.foil is not None else {}),
    }
    of_several: dict[str, Any] = {
        "prompts": f"graphs/{prompts_path(task).name}",
        "prompts_digest": digest_of(prepared.kept),
        "baseline_ids": drawn,
    }
    head = heads.head_of(
        panel,
        prepared.language_model,
        name=task.name,
        method=method,
        baseline=task.baseline,
        model=task.request.settings.model.name,
        dtype=task.request.settings.model.dtype,
        digests=prepared.digests,
        seed=task.request.settings.seed,
        baseline_tokens=settings.baseline_tokens,
        chat=settings.chat or None,
        path=f"graphs/{task.name}.jsonl",
        neuronpedia=prepared.neuronpedia or None,
        **(of_several if task.keeps_prompts else of_one),
        **facts,
    )
    if settings.extend is not None:
        graphs.check_joinable(read_graphs(Path(settings.extend))[-1].head, head)
    return head


def prompts_path(task: Task) -> Path:
    """Where the prompts of a file, or several, are kept, so that the graph can be tested on them."""
    return task.path.with_suffix(".prompts.jsonl")


def finish(
    task: Task, graph: CircuitGraph, prepared: Prepared, *, more: Sequence[Record] = ()
) -> tuple[list[Record], dict[str, Any]]:
    """Extend another graph if asked to, write the graph's file and its prompts, and give the stage's records.

    more: records that follow those of the graph.
    """
    if task.settings.extend is not None:
        graph = graphs.merged(read_graphs(Path(task.settings.extend))[-1], graph)
    made = [*graphs.to_records(graph), *more]
    if task.keeps_prompts:
        with atomic(prompts_path(task)) as stream:
            for example in prepared.kept:
                stream.write(json.dumps(as_line(example), ensure_ascii=False) + "\n")
    with atomic(task.path) as stream:
        records.write(made, stream)
    return made, {"n_nodes": len(graph.nodes), "n_edges": len(graph.edges)}
