"""What the graph stages share: the panel of prompts and coders, the baseline, the head, the graph's file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import graphs, records
from circuitcli.attribution.examples import Example, as_line, digest_of
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint, parse_layers
from circuitcli.records import GraphRecord, Record
from circuitcli.runs import atomic
from circuitcli.settings.graph import GraphSettings
from circuitcli.stages.behaviours import own_examples
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.graph_task import Task
from circuitcli.stages.inputs import open_cache, read_graphs
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, at_neuronpedia, graph_sources, load_saes

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import BaselineRule
    from circuitcli.attribution.panel import Panel
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.coders import Coders
    from circuitcli.saes.exchange.tensors import Foreign


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
