"""What both graph stages share: the subject, the baseline, the head, the graph file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import graphs, records
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint
from circuitcli.records import GraphRecord, Record
from circuitcli.runs import Fingerprint, atomic, file_digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.inputs import activation_digests, open_cache, read_graphs
from circuitcli.stages.naming import GRAPH, chosen_name, valid_name
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import Baseline
    from circuitcli.attribution.subject import Subject, Target
    from circuitcli.models.loading import LanguageModel

# Where the model runs and how many rows at once changes rounding only; the file to extend is an input.
_NO_MATTER = (*PLACEMENT, "graph.batch_size", "graph.extend", "graph.name")


@dataclass(frozen=True)
class Task:
    """One graph to make."""

    request: Request
    stage: str
    name: str
    positions: str
    baseline: str
    sources: Mapping[HookPoint, SaeSource]
    foreign: tuple[str, ...]

    @property
    def settings(self) -> GraphSettings:
        """The section of the settings that says what is explained."""
        return self.request.settings.graph

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
        if self.settings.extend is not None:
            inputs["graph to extend"] = file_digest(Path(self.settings.extend))
        prefixes = ("graph.", "model.", "seed", "sae_path")
        return fingerprint(self.request, prefixes, inputs, without=(*_NO_MATTER, *self.foreign))


def task_of(request: Request, stage: str, *, name: str, positions: str, baseline: str, foreign: Iterable[str]) -> Task:
    """The graph that a request asks for. Raises SettingsError without a prompt, InputError without SAEs."""
    settings = request.settings.graph
    if settings.prompt is None and settings.prompt_ids is None:
        raise SettingsError(
            f"{stage} has no prompt", hint=f'add --prompt, for example {stage} --prompt "The capital of"'
        )
    if settings.extend is not None:
        read_graphs(Path(settings.extend))
    if settings.name is not None:
        valid_name(settings.name)
    task = Task(
        request=request,
        stage=stage,
        name=settings.name or name,
        positions=settings.positions or positions,
        baseline=settings.baseline or baseline,
        sources=sae_sources(request, stage=stage),
        foreign=tuple(f"graph.{field}" for field in foreign),
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


@dataclass(frozen=True)
class Prepared:
    """A subject with its baseline and its target."""

    language_model: "LanguageModel"
    subject: "Subject"
    baseline: "Baseline"
    target: "Target"


def prepare(task: Task) -> Prepared:
    """Load model and SAEs, run the prompt, take the baseline."""
    from circuitcli.attribution.subject import chosen_hooks
    from circuitcli.models.loading import load_model

    language_model = load_model(task.request.settings.model)
    n_layers = language_model.adapter.n_layers
    hooks = chosen_hooks(list(task.sources), task.settings, n_layers=n_layers)
    return _prepared(task, language_model, hooks)


def _prepared(task: Task, language_model: "LanguageModel", hooks: Sequence[HookPoint]) -> Prepared:
    from circuitcli.attribution import subject as subjects
    from circuitcli.attribution.prompts import asked_prompt

    settings = task.settings
    prompt = asked_prompt(settings)
    assert prompt is not None, "task_of has looked"
    loaded = load_saes(task.sources, hooks, model=task.request.settings.model.name, adapter=language_model.adapter)
    saes = {hook: found.sae for hook, found in loaded.items()}
    subject, target = subjects.build(
        language_model, saes, settings, prompt=prompt, target=settings.target, foil=settings.foil
    )
    warn_of_misfits(task.request, task.sources, loaded, language_model, clean=subject.clean, first=subject.prompt.first)
    baseline = take_baseline(task.request, task.baseline, subject, language_model, settings)
    return Prepared(language_model, subject, baseline, target)


def take_baseline(
    request: Request, kind: str, subject: "Subject", language_model: "LanguageModel", settings: GraphSettings
) -> "Baseline":
    """The baseline of a kind. Raises InputError if it needs a cache or a counterfactual that is not there."""
    from circuitcli.attribution import baselines
    from circuitcli.attribution.prompts import asked_counterfactual

    if kind == "zero":
        return baselines.zero(subject.saes)
    if kind == "counterfactual":
        return baselines.counterfactual(subject, language_model, asked_counterfactual(settings))
    cache = open_cache(request, subject.hooks, purpose=f"the {kind} baseline")
    if kind == "mean":
        return baselines.mean(subject.saes, cache, n_tokens=settings.baseline_tokens)
    return baselines.resample(subject, cache, seed=request.settings.seed)


def empty_metric(prepared: Prepared) -> float:
    """The metric with every node and error of the spliced hook points at baseline."""
    from circuitcli.validation.circuits import circuit_metric, kept_nodes

    nothing = kept_nodes(prepared.subject, ())
    return float(circuit_metric(prepared.subject, prepared.baseline, [nothing], batch_size=1)[0])


def head_of(task: Task, prepared: Prepared, *, method: str, **facts: Any) -> GraphRecord:
    """The head of a graph: what is explained, how, and the metric with everything and with nothing."""
    subject, settings = prepared.subject, task.settings
    return GraphRecord(
        name=task.name,
        method=method,
        metric=subject.metric.name,
        prompt=subject.prompt.text,
        tokens=subject.prompt.tokens,
        metric_clean=subject.metric_clean,
        metric_baseline=empty_metric(prepared),
        dtype=task.request.settings.model.dtype,
        unit=subject.metric.unit,
        baseline=task.baseline,
        positions=task.positions,
        model=task.request.settings.model.name,
        target=prepared.target.text,
        foil=settings.foil,
        saes={str(hook): task.sources[hook].digest for hook in subject.hooks},
        path=f"graphs/{task.name}.jsonl",
        **{
            "target_id": prepared.target.id,
            "baseline_tokens": settings.baseline_tokens,
            "revision": prepared.language_model.revision,
            "counterfactual": settings.counterfactual,
            "counterfactual_ids": settings.counterfactual_ids,
            "ids": tuple(subject.prompt.ids[0].tolist()),
            "bos": subject.prompt.bos,
            "chat": settings.chat or None,
            **facts,
        },
    )


def finish(task: Task, prepared: Prepared, graph: CircuitGraph) -> tuple[list[Record], dict[str, Any]]:
    """Extend another graph if asked to, write the graph's file, and give the stage's records."""
    if task.settings.extend is not None:
        graph = _extended(task, prepared, graph)
    made = graphs.to_records(graph)
    with atomic(task.path) as stream:
        records.write(made, stream)
    return made, {"n_nodes": len(graph.nodes), "n_edges": len(graph.edges)}


def _extended(task: Task, prepared: Prepared, graph: CircuitGraph) -> CircuitGraph:
    """The graph joined to the one that it extends; where hook points were added, with the metric of all at baseline."""
    joined = graphs.merged(read_graphs(Path(task.settings.extend or ""))[-1], graph)
    hooks = sorted(HookPoint.parse(name) for name in joined.head.saes)
    if hooks == list(prepared.subject.hooks):
        return joined
    missing = [str(hook) for hook in hooks if hook not in task.sources]
    if missing:
        raise InputError(
            f"no SAE at {' '.join(missing)}, which the graph to extend has", hint="name it with --sae PATH"
        )
    whole = empty_metric(_prepared(task, prepared.language_model, hooks))
    return replace(joined, head=joined.head.model_copy(update={"metric_baseline": whole}))
