"""The test of a circuit: faithfulness, completeness, minimality, chance, and all its features ablated together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import graphs
from circuitcli.errors import InputError, SettingsError, ThresholdError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint, NodeId, parse_pins
from circuitcli.records import Record, ScoreRecord, Stream
from circuitcli.runs import Fingerprint, atomic, digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.settings.settings import Settings
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.graphing import take_baseline
from circuitcli.stages.inputs import activation_digests, chosen_graph
from circuitcli.stages.prompts import Example, asked_example, graph_example, read_prompts
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import Baseline
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.validation.ablation import JointAblation
    from circuitcli.validation.scores import Case

_NO_MATTER = (*PLACEMENT, "validate.at_least", "validate.graph", "validate.prompts")


@dataclass(frozen=True)
class Plan:
    """What is tested: the nodes, the hook points that are spliced, the prompts and the metric."""

    request: Request
    name: str
    nodes: tuple[NodeId, ...]
    hooks: tuple[HookPoint, ...]
    sources: dict[HookPoint, SaeSource]
    examples: tuple[Example, ...]
    metric: GraphSettings
    baseline: str
    graph_digest: str | None = None

    def fingerprint(self) -> Fingerprint:
        """Over the settings that the stage reads, the nodes, the SAEs, the prompts and the cache if it is needed."""
        inputs = {f"SAE at {hook}": self.sources[hook].digest for hook in self.hooks}
        inputs["nodes"] = digest([str(node) for node in self.nodes])
        inputs["prompts"] = digest([asdict(example) for example in self.examples])
        inputs["metric"] = digest(
            [
                self.metric.metric,
                self.metric.counterfactual,
                self.metric.counterfactual_ids,
                self.metric.baseline_tokens,
                self.baseline,
            ]
        )
        if self.baseline in ("mean", "resample"):
            inputs |= activation_digests(self.request)
        return fingerprint(self.request, ("validate.", "model.", "seed", "sae_path"), inputs, without=_NO_MATTER)


def run(request: Request) -> list[Record]:
    """The scores of a graph or of pinned features, measured now or before.

    Raises InputError for nodes, SAEs or prompts that do not fit, and for a metric that the nodes do not change.
    """
    plan = _pin_plan(request) if request.settings.validation.pin else _graph_plan(request)
    return resumable(request, f"validate:{plan.name}", plan.fingerprint(), lambda resumes: _work(plan))


def check(made: Sequence[Record], settings: Settings) -> None:
    """Raise ThresholdError if faithfulness is below ``validate.at_least``."""
    wanted = settings.validation.at_least
    score = _headline(made)
    if wanted is not None and (score is None or score.value < wanted):
        value = "not measured" if score is None else f"{score.value:.4f}"
        raise ThresholdError(f"faithfulness is {value}, below {wanted}", hint="raise --down and --up of graph-grad")


def _headline(made: Sequence[Record]) -> ScoreRecord | None:
    scores = Stream(made).of(ScoreRecord)
    return next((score for score in scores if score.name == "faithfulness" and score.judged), None)


def _graph_plan(request: Request) -> Plan:
    settings = request.settings.validation
    graph = chosen_graph(request, settings.graph, stage="validate")
    sources = sae_sources(request, stage="validate")
    hooks = tuple(HookPoint.parse(name) for name in graph.head.saes)
    _check_saes(graph, sources)
    nodes = tuple(node.place for node in graph.nodes if node.place is not None)
    if not nodes:
        raise InputError(f"graph '{graph.head.name}' has no node", hint="raise --down and --up of graph-grad")
    # A graph of a chat is tested on chats.
    chat = request.settings.graph.chat or bool(graph.head.chat)
    examples = read_prompts(settings.prompts, chat=chat) if settings.prompts else (graph_example(graph),)
    aligned = settings.prompts is None
    _check_behaviour(request.settings.graph, graph)
    return Plan(
        request=request,
        name=graph.head.name,
        nodes=nodes if aligned else _without_positions(nodes),
        hooks=tuple(sorted(hooks)),
        sources=sources,
        examples=examples,
        metric=_graph_metric(request.settings.graph, graph),
        baseline=settings.baseline or graph.head.baseline,
        graph_digest=graphs.content_digest(graph),
    )


def _graph_metric(settings: GraphSettings, graph: CircuitGraph) -> GraphSettings:
    """The settings under which the graph was made, as far as a test needs them."""
    named = ("metric", "counterfactual", "counterfactual_ids", "chat", "baseline_tokens")
    told = {name: getattr(graph.head, name) for name in named}
    return settings.model_copy(update={name: value for name, value in told.items() if value is not None})


def _check_behaviour(settings: GraphSettings, graph: CircuitGraph) -> None:
    """Raise SettingsError for a prompt, target or foil that are not the graph's: a graph is tested on its own."""
    for name in ("prompt", "target", "foil"):
        asked, own = getattr(settings, name), getattr(graph.head, name)
        if asked is not None and asked != own:
            raise SettingsError(
                f"graph '{graph.head.name}' is about the {name} {own!r}, not {asked!r}",
                hint="leave it out, or test on other prompts with --prompts FILE",
            )
    ids, own = settings.prompt_ids, graph.head.ids or ()
    if ids is not None and ids not in (own, own[1:]):
        raise SettingsError(
            f"graph '{graph.head.name}' is about a prompt of other tokens than {' '.join(map(str, ids))}",
            hint="leave --prompt-ids out, or test on other prompts with --prompts FILE",
        )


def _check_saes(graph: CircuitGraph, sources: dict[HookPoint, SaeSource]) -> None:
    for name, expected in graph.head.saes.items():
        source = sources.get(HookPoint.parse(name))
        if source is None or source.digest != expected:
            what = "is missing" if source is None else "has other weights"
            raise InputError(
                f"the SAE at {name} that graph '{graph.head.name}' was made with {what}",
                hint="make the graph again, or name its SAEs with --sae PATH",
            )


def _without_positions(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """On other prompts positions mean other words, so a node counts at all of them."""
    return tuple(dict.fromkeys(replace(node, position=None) for node in nodes))


def _pin_plan(request: Request) -> Plan:
    settings, pins = request.settings, parse_pins(request.settings.validation.pin)
    sources = sae_sources(request, stage="validate")
    for hook in pins:
        if hook not in sources:
            there = " ".join(str(known) for known in sources)
            raise InputError(f"no SAE at pinned hook point {hook}", hint=f"there are SAEs at {there}")
    return Plan(
        request=request,
        name="pins",
        nodes=tuple(NodeId(hook, index) for hook, indices in pins.items() for index in indices),
        hooks=tuple(pins),
        sources=sources,
        examples=_pin_examples(request),
        metric=_pin_metric(request),
        baseline=settings.validation.baseline or "zero",
    )


def _pin_examples(request: Request) -> tuple[Example, ...]:
    settings = request.settings
    if settings.validation.prompts:
        return read_prompts(settings.validation.prompts, chat=settings.graph.chat)
    if (asked := asked_example(settings.graph)) is not None:
        return (asked,)
    made = graphs.from_records(request.records)
    if not made:
        raise SettingsError("validate --pin has no prompt", hint="add --prompt TEXT, or --prompts FILE")
    return (graph_example(made[-1]),)


def _pin_metric(request: Request) -> GraphSettings:
    """The metric that is set; with the prompt of the last graph also its metric, unless one is set."""
    settings = request.settings
    made = graphs.from_records(request.records)
    borrows = settings.validation.prompts is None and asked_example(settings.graph) is None and made
    if not borrows or settings.graph.metric != GraphSettings().metric:
        return settings.graph
    return _graph_metric(settings.graph, made[-1])


def _work(plan: Plan) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import load_model
    from circuitcli.progress import track

    language_model = load_model(plan.request.settings.model)
    # Later hook points are measured only when the circuit is ablated.
    measured = [hook for hook in plan.sources if min(plan.hooks) <= hook]
    loaded = load_saes(plan.sources, measured, model=plan.request.settings.model.name, adapter=language_model.adapter)
    saes = {hook: found.sae for hook, found in loaded.items()}
    spliced = {hook: saes[hook] for hook in plan.hooks}
    cases: list[Case] = []
    for example in track(plan.examples, "prompts", unit="prompts"):
        # These baselines are the same for every prompt, and the mean takes a pass over the cache.
        shared = cases[0].baseline if cases and plan.baseline in ("zero", "mean") else None
        cases.append(_case(plan, language_model, spliced, example, shared=shared))
    subject = cases[0].subject
    warn_of_misfits(plan.request, plan.sources, loaded, language_model, clean=subject.clean, first=subject.prompt.first)
    scores = _scores(plan, cases)
    joint = _joint_ablation(plan, language_model, saes)
    report = f"reports/{plan.name}.json"
    effect = ScoreRecord(
        name="effect",
        value=joint.effect,
        **_common(plan, path=report, unit=cases[0].subject.metric.unit, what="ablated together"),
    )
    _write_report(plan, plan.request.run.path / report, [*scores, effect], joint)
    return [*scores, effect], {}


def _case(
    plan: Plan,
    language_model: "LanguageModel",
    saes: "Mapping[HookPoint, SparseAutoencoder]",
    example: Example,
    *,
    shared: "Baseline | None" = None,
) -> "Case":
    from circuitcli.attribution import subject as subjects
    from circuitcli.validation.scores import Case

    subject, _ = subjects.build(
        language_model, saes, plan.metric, prompt=example.written, target=example.target, foil=example.foil
    )
    baseline = shared or take_baseline(plan.request, plan.baseline, subject, language_model, plan.metric)
    return Case(subject, baseline, plan.nodes)


def _common(plan: Plan, **more: Any) -> dict[str, Any]:
    return {
        "graph": plan.name,
        "graph_digest": plan.graph_digest,
        "ablation": plan.baseline,
        "n_nodes": len(plan.nodes),
        "n_prompts": len(plan.examples),
        **more,
    }


def _scores(plan: Plan, cases: "Sequence[Case]") -> list[ScoreRecord]:
    from circuitcli.validation.circuits import POLICIES

    made = []
    for policy in POLICIES:
        made += _policy_scores(plan, cases, policy, is_judged=policy == plan.request.settings.validation.errors)
    return made


def _policy_scores(plan: Plan, cases: "Sequence[Case]", policy: str, *, is_judged: bool) -> list[ScoreRecord]:
    """Faithfulness and completeness under one error policy; under the judged one also minimality and chance."""
    from circuitcli.validation import scores

    settings, seed = plan.request.settings.validation, plan.request.settings.seed
    batch_size = plan.metric.batch_size
    runs = scores.measure(cases, policy=policy, batch_size=batch_size)
    common = _common(plan, errors=policy, unit="ratio")
    means = {
        "metric_clean": float(runs.clean.mean()),
        "metric_circuit": float(runs.circuit.mean()),
        "metric_empty": float(runs.empty.mean()),
    }
    made = []
    for name, part in (("faithfulness", runs.circuit), ("completeness", runs.complement)):
        score = scores.ratio(part, runs, bootstrap=settings.bootstrap, seed=seed)
        extra = {"judged": is_judged, **means} if name == "faithfulness" else {}
        made.append(ScoreRecord(name=name, value=score.value, low=score.low, high=score.high, **common, **extra))
    if is_judged and settings.minimality:
        value, node = scores.minimality(cases, runs, policy=policy, batch_size=batch_size)
        made.append(ScoreRecord(name="minimality", value=value, node=node, **common))
    if is_judged and settings.samples:
        chance = scores.random_faithfulness(
            cases, runs, policy=policy, samples=settings.samples, seed=seed, batch_size=batch_size
        )
        made.append(
            ScoreRecord(
                name="faithfulness-random",
                value=float(chance.mean()),
                low=float(chance.min()),
                high=float(chance.max()),
                samples=settings.samples,
                **common,
            )
        )
    return made


def _joint_ablation(
    plan: Plan, language_model: "LanguageModel", saes: "Mapping[HookPoint, SparseAutoencoder]"
) -> "JointAblation":
    """The first prompt with the circuit's nodes ablated; all hook points with SAEs from the first on are measured."""
    from circuitcli.validation.ablation import ablate_together

    case = _case(plan, language_model, saes, plan.examples[0])
    top = plan.request.settings.validation.top
    return ablate_together(case.subject, plan.nodes, case.baseline, tokenizer=language_model.tokenizer, top=top)


def _write_report(plan: Plan, path: Path, scores: Sequence[ScoreRecord], joint: "JointAblation") -> None:
    content = {
        "graph": plan.name,
        "nodes": [str(node) for node in plan.nodes],
        "prompts": [asdict(example) for example in plan.examples],
        "scores": [score.model_dump(exclude_none=True) for score in scores],
        "ablated_together": asdict(joint),
    }
    with atomic(path) as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
