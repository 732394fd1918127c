"""What both graph stages share: the subject, the baseline, the head, the graph file."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import graphs, records
from circuitcli.errors import SettingsError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint, parse_pins, parse_slice
from circuitcli.records import GraphRecord, Record
from circuitcli.runs import Fingerprint, atomic, file_digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.behaviours import behaviour, check_text, text_digests
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.inputs import activation_digests, open_cache, read_graphs
from circuitcli.stages.naming import GRAPH, chosen_name, valid_name
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import Baseline
    from circuitcli.attribution.prompts import Written
    from circuitcli.attribution.subject import Subject, Target
    from circuitcli.models.loading import LanguageModel

logger = logging.getLogger(__name__)

# Of a slice of layers that is read without the model; no release has more.
_MOST_LAYERS = 1024

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
    def takes_own_text(self) -> bool:
        """Whether no prompt is given, so that one is chosen from the run's own text."""
        return self.settings.prompt is None and self.settings.prompt_ids is None

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
        if self.settings.extend is not None:
            inputs["graph to extend"] = file_digest(Path(self.settings.extend))
        prefixes = ("graph.", "model.", "seed", "sae_path")
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
    task = Task(
        request=request,
        stage=stage,
        name=settings.name or name,
        positions=settings.positions or positions,
        baseline=settings.baseline or baseline,
        sources=sae_sources(request, stage=stage, layers=_named_layers(settings)),
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


def _named_layers(settings: GraphSettings) -> set[int]:
    """Layers at which SAEs of a whole release are wanted: those of pins, and of a slice that no model is needed for."""
    named = parse_slice(settings.layers or "0:0")
    start, stop = named.start or 0, named.stop
    is_plain = stop is not None and min(start, stop) >= 0
    sliced = range(start, min(stop, _MOST_LAYERS), named.step or 1) if is_plain else ()
    return {*sliced, *(hook.layer for hook in parse_pins(settings.pin))}


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
    if metric == "logit-diff" and settings.foil is None:
        raise SettingsError("the metric logit-diff needs a foil", hint="add --foil TOKEN")
    if settings.foil is not None and metric != "logit-diff":
        raise SettingsError(f"the metric {metric} has no foil", hint="add --metric logit-diff, or leave --foil out")
    if settings.target is not None and metric in ("cross-entropy", "kl"):
        raise SettingsError(
            f"the metric {metric} has no target", hint="use --metric log-prob or logit-diff, or leave --target out"
        )


def _warn_of_unused(settings: GraphSettings, *, baseline: str) -> None:
    if (settings.counterfactual or settings.counterfactual_ids) is not None and baseline != "counterfactual":
        logger.warning("the baseline %s uses no counterfactual prompt; --baseline counterfactual does", baseline)


@dataclass(frozen=True)
class Prepared:
    """A subject with its baseline and its target."""

    language_model: "LanguageModel"
    subject: "Subject"
    baseline: "Baseline"
    target: "Target"
    baseline_ids: Sequence[int] | None


def prepare(task: Task) -> Prepared:
    """Load model and SAEs, run the prompt, or the one that is chosen where none is given, and take the baseline."""
    from circuitcli.attribution import subject as subjects
    from circuitcli.models.loading import load_model

    request, settings = task.request, task.settings
    language_model = load_model(request.settings.model)
    hooks = subjects.chosen_hooks(list(task.sources), settings, n_layers=language_model.adapter.n_layers)
    loaded = load_saes(task.sources, hooks, model=request.settings.model.name, adapter=language_model.adapter)
    prompt, wanted = _explained(task, language_model)
    subject, target = subjects.build(
        language_model,
        {hook: found.sae for hook, found in loaded.items()},
        settings,
        prompt=prompt,
        target=wanted,
        foil=settings.foil,
    )
    warn_of_misfits(request, task.sources, loaded, language_model, clean=subject.clean, first=subject.prompt.first)
    row = draw_row(request, subject) if task.baseline == "resample" else None
    baseline = take_baseline(request, task.baseline, subject, language_model, settings, row=row)
    return Prepared(language_model, subject, baseline, target, row)


def _explained(task: Task, language_model: "LanguageModel") -> "tuple[Written, str | int | None]":
    """The prompt, and the target unless it is the model's most likely next token."""
    from circuitcli.attribution.prompts import asked_prompt

    asked = asked_prompt(task.settings)
    if asked is not None:
        return asked, task.settings.target
    chosen = behaviour(task.request, language_model)
    return language_model.tokenizer.own_part(chosen.ids), chosen.target


def take_baseline(
    request: Request,
    kind: str,
    subject: "Subject",
    language_model: "LanguageModel",
    settings: GraphSettings,
    *,
    row: Sequence[int] | None = None,
) -> "Baseline":
    """The baseline of a kind; ``row`` holds the token ids that `resample` goes to, drawn with the seed unless given.

    Raises InputError if it needs a cache or a counterfactual that is not there.
    """
    from circuitcli.attribution import baselines
    from circuitcli.attribution.prompts import asked_counterfactual

    if kind == "zero":
        return baselines.zero(subject.saes)
    if kind == "counterfactual":
        return baselines.counterfactual(subject, language_model, asked_counterfactual(settings))
    if kind == "resample":
        return baselines.resample(subject, draw_row(request, subject) if row is None else row)
    cache = open_cache(request, subject.hooks, purpose="the mean baseline")
    return baselines.mean(subject.saes, cache, n_tokens=settings.baseline_tokens)


def draw_row(request: Request, subject: "Subject") -> list[int]:
    """Token ids of cached text that `resample` goes to, whichever hook points it was collected at.

    Raises InputError without a cache or text of that length.
    """
    from circuitcli.attribution.baselines import drawn_row

    cache = open_cache(request, (), purpose="the resample baseline")
    return drawn_row(cache, n_positions=subject.prompt.ids.shape[1], seed=request.settings.seed)


def empty_metric(prepared: Prepared) -> float:
    """The metric with every node and error of the spliced hook points at baseline."""
    from circuitcli.validation.circuits import circuit_metric, kept_nodes

    nothing = kept_nodes(prepared.subject, ())
    return float(circuit_metric(prepared.subject, prepared.baseline, [nothing], batch_size=1)[0])


def head_of(task: Task, prepared: Prepared, *, method: str, **facts: Any) -> GraphRecord:
    """The head of a graph: what is explained, how, and the metric with everything and with nothing.

    Raises InputError if the graph that is to be extended is another one's.
    """
    from circuitcli.attribution.subject import check_finite

    subject, settings = prepared.subject, task.settings
    clean, empty = subject.metric_clean, empty_metric(prepared)
    check_finite((clean,), "the metric of this prompt")
    check_finite((empty,), "the metric with every node at its baseline")
    head = GraphRecord(
        name=task.name,
        method=method,
        metric=subject.metric.name,
        prompt=subject.prompt.text,
        tokens=subject.prompt.tokens,
        metric_clean=clean,
        metric_baseline=empty,
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
            "seed": task.request.settings.seed,
            "n_prompts": 1,
            "n_positions": len(subject.prompt.tokens),
            "baseline_ids": prepared.baseline_ids,
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
    if settings.extend is not None:
        graphs.check_joinable(read_graphs(Path(settings.extend))[-1].head, head)
    return head


def why_nothing_differs(prepared: Prepared) -> str | None:
    """What a graph without nodes comes from, if every feature and error is at its baseline already."""
    for hook, coded in prepared.subject.coded.items():
        absent = prepared.baseline[hook]
        if bool((coded.codes != absent.codes).any()) or bool((coded.error != absent.error).any()):
            return None
    return "every feature and error is at its baseline already"


def warn_of_emptiness(task: Task, why: str) -> None:
    """Say aloud that a graph has no node, and why."""
    logger.warning("graph %s has no node: %s", task.name, why)


def finish(task: Task, graph: CircuitGraph) -> tuple[list[Record], dict[str, Any]]:
    """Extend another graph if asked to, write the graph's file, and give the stage's records."""
    if task.settings.extend is not None:
        graph = graphs.merged(read_graphs(Path(task.settings.extend))[-1], graph)
    made = graphs.to_records(graph)
    with atomic(task.path) as stream:
        records.write(made, stream)
    return made, {"n_nodes": len(graph.nodes), "n_edges": len(graph.edges)}
