"""The test of a circuit: faithfulness, completeness, minimality, its controls, and all its nodes ablated together."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from circuitcli import graphs
from circuitcli.attribution.examples import Example, LeftOut, as_line
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.errors import InputError, SettingsError, ThresholdError
from circuitcli.graphs import CircuitGraph, ablated_nodes, edges_between, strongest_nodes
from circuitcli.hookpoints import HookPoint, NodeId, without_numbers
from circuitcli.records import CurveRecord, FigureRecord, GraphRecord, Record, ScoreRecord, Stream
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages import against, choices, interaction, pins, stability, steering
from circuitcli.stages.inputs import chosen_graph
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.modes import check_modes
from circuitcli.stages.prompts import graph_examples
from circuitcli.stages.report import write_report
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.saes import SaeSource, sae_sources
from circuitcli.stages.trials import Bench, Plan
from circuitcli.validation.effects import effects_like

if TYPE_CHECKING:
    from circuitcli.validation.curves import Curve
    from circuitcli.validation.scores import PanelCases
    from circuitcli.validation.trial import Trial

logger = logging.getLogger(__name__)

_MORE_NODES = (
    "make a larger one: graph-grad with more --down, or less --min-share; graph-grad --frozen with more "
    "--node-threshold; graph-naive with less --threshold-exp"
)
# A position that every prompt has.
_LAST = "last"


def run(request: Request) -> list[Record]:
    """The scores of a graph, or what ablating pinned features does, measured now or before; a killed test goes on.

    Raises InputError for nodes, SAEs or prompts that do not fit, for a metric that the nodes do not change, and for
    pins of which none is active.
    """
    check_modes(request.settings.validation)
    if request.settings.validation.pin:
        return pins.run(request)
    if request.settings.validation.choices is not None:
        return choices.run(request)
    if request.settings.validation.scale:
        return steering.run(request)
    if request.settings.validation.interaction:
        return interaction.run(request)
    if request.settings.validation.against is not None:
        return against.run(request, _plan)
    plan = _plan(request).named()
    # What it cannot be asked for is told before anything is run.
    further = stability.planned(request, plan)
    made = resumable(
        request, plan.entry, plan.fingerprint(), lambda resumes: _work(plan, resumes), partial=plan.partial, keeps=True
    )
    return made if further is None else stability.run(further, made)


def check(made: Sequence[Record], settings: Settings) -> None:
    """Raise ThresholdError if faithfulness is below ``validate.at_least``."""
    wanted = settings.validation.at_least
    score = _headline(made)
    if wanted is not None and (score is None or score.value < wanted):
        value = "not measured" if score is None else f"{score.value:.4f}"
        raise ThresholdError(f"faithfulness is {value}, below {wanted}", hint=_MORE_NODES)


def _headline(made: Sequence[Record]) -> ScoreRecord | None:
    scores = Stream(made).of(ScoreRecord)
    return next((score for score in scores if score.name == "faithfulness" and score.judged), None)


def _plan(request: Request) -> Plan:
    settings = request.settings.validation
    graph = chosen_graph(request, settings.graph, stage="validate")
    sources = sae_sources(request, stage="validate")
    hooks = tuple(HookPoint.parse(name) for name in graph.head.saes)
    writes = frozenset(HookPoint.parse(name) for hook in graph.head.saes for name in graph.head.written(hook))
    _check_saes(graph, sources)
    nodes = ablated_nodes(graph)
    if not nodes:
        raise InputError(f"graph '{graph.head.name}' has no node", hint=_MORE_NODES)
    if lost := [node for node in nodes if node.hook not in (writes if node.is_error else hooks)]:
        raise InputError(
            f"graph '{graph.head.name}' has {lost[0]}, but its head names no SAE there", hint="make the graph again"
        )
    # A graph of a chat is tested on chats.
    chat = request.settings.graph.chat or bool(graph.head.chat)
    left_out = LeftOut(allowed=request.settings.graph.skip_bad)
    if settings.prompts:
        examples = read_examples(settings.prompts, chat=chat, left_out=left_out)
    else:
        examples = graph_examples(graph, request.run.path)
    aligned = settings.prompts is None
    _check_behaviour(request.settings.graph, graph, has_prompts=not aligned)
    baseline = settings.baseline or graph.head.baseline
    # Rows of text that are the graph's own; with others the numbers would be others.
    is_redrawn = aligned and baseline == graph.head.baseline == "resample"
    return Plan(
        request=request,
        name=graph.head.name,
        graph=graph.head.name,
        nodes=nodes,
        n_positions=graph.head.n_positions if graph.head.n_prompts > 1 else None,
        hooks=tuple(sorted(hooks)),
        sources=sources,
        examples=examples,
        metric=_graph_metric(request.settings.graph, graph),
        baseline=baseline,
        row=_drawn_row(graph) if is_redrawn else None,
        drawn_with=graph.head.seed if is_redrawn and graph.head.n_prompts > 1 else None,
        graph_digest=graphs.content_digest(graph),
        edges=edges_between(graph),
        ranked=strongest_nodes(graph),
        control=None if settings.control_graph is None else _control(request, graph, settings.control_graph),
        effects=effects_like(graph.head, request.settings.graph),
        found_on=() if aligned else _found_on(request, graph),
        writes=writes,
        left_out=left_out,
        # Means by position are those of the prompts that the graph was found with.
        found_with=() if aligned or baseline != "mean-position" else graph_examples(graph, request.run.path),
    )


def _graph_metric(settings: GraphSettings, graph: CircuitGraph) -> GraphSettings:
    """The settings under which the graph was made, as far as a test needs them; on other prompts its metric gives way
    to one that is asked for."""
    named = ["counterfactual", "counterfactual_ids", "chat", "baseline_tokens"]
    if "metric" not in settings.model_fields_set:
        named.append("metric")
    told = {name: getattr(graph.head, name) for name in named}
    return settings.model_copy(update={name: value for name, value in told.items() if value is not None})


def _drawn_row(graph: CircuitGraph) -> tuple[int, ...] | None:
    """The row of text that the baseline of a graph of one prompt comes from; those of many are drawn by its seed."""
    is_told = graph.head.n_prompts > 1 and graph.head.seed is not None
    if graph.head.baseline_ids is None and not is_told:
        logger.warning(
            "graph '%s' does not tell which text its resample baseline was drawn from: another one is drawn, and "
            "scores are not about the baseline that the graph was made with",
            graph.head.name,
        )
    return graph.head.baseline_ids


def _check_behaviour(settings: GraphSettings, graph: CircuitGraph, *, has_prompts: bool) -> None:
    """Raise SettingsError for a prompt, target, metric or chat that are not the graph's: a graph is tested on its own.

    On other prompts a metric that is asked for counts.
    """
    if not has_prompts and "metric" in settings.model_fields_set and settings.metric != graph.head.metric:
        raise SettingsError(
            f"graph '{graph.head.name}' is about the metric {graph.head.metric}, not {settings.metric}",
            hint="leave it out, or make a graph with that metric",
        )
    if graph.head.counterfactual is not None and settings.counterfactual not in (None, graph.head.counterfactual):
        raise SettingsError(
            f"graph '{graph.head.name}' has another counterfactual, {graph.head.counterfactual!r}",
            hint="leave it out, or make a graph with this one",
        )
    for name in ("prompt", "target", "foil"):
        asked, own = getattr(settings, name), getattr(graph.head, name)
        if asked is not None and asked != own:
            raise SettingsError(
                f"graph '{graph.head.name}' is about the {name} {own!r}, not {asked!r}",
                hint="leave it out, or test on other prompts with --prompts FILE",
            )
    if settings.chat and not graph.head.chat and not has_prompts:
        raise SettingsError(
            f"graph '{graph.head.name}' is about a plain text, not a chat",
            hint="leave out --chat, or test on other prompts with --prompts FILE",
        )
    ids, own = settings.prompt_ids, graph.head.ids or ()
    if ids is not None and ids not in (own, own[1:]):
        raise SettingsError(
            f"graph '{graph.head.name}' is about a prompt of other tokens than {' '.join(map(str, ids))}",
            hint="leave out --prompt-ids, or test on other prompts with --prompts FILE",
        )


def _control(request: Request, graph: CircuitGraph, named: str) -> tuple[NodeId, ...]:
    """The nodes of another behaviour's graph, at all positions where they have numbers, which are other words here, or
    names of spans that the tested graph has not.

    Raises InputError for a graph of other coders, for one without nodes, and for the graph itself.
    """
    other = chosen_graph(request, named, stage="validate")
    nodes, head = ablated_nodes(other), other.head
    if graphs.content_digest(other) == graphs.content_digest(graph):
        raise InputError(
            f"the control graph '{head.name}' is the graph that is tested", hint="name one of another behaviour"
        )
    if _is_about_the_same(head, graph.head):
        raise InputError(
            f"the control graph '{head.name}' is about the same behaviour as graph '{graph.head.name}'",
            hint=f"name one of another prompt, target or metric; --against {head.name} compares two of one behaviour",
        )
    if not nodes:
        raise InputError(f"the control graph '{head.name}' has no node", hint=_MORE_NODES)
    for name, digest in head.saes.items():
        if graph.head.saes.get(name) != digest:
            raise InputError(
                f"the control graph '{head.name}' has {'another SAE' if name in graph.head.saes else 'an SAE'} at "
                f"{name}, where graph '{graph.head.name}' has {'its own' if name in graph.head.saes else 'none'}",
                hint="make it with the same --layers, --sites and SAEs",
            )
    known = {_LAST, *(node.position for node in ablated_nodes(graph))}
    here = (node if node.position in known else replace(node, position=None) for node in without_numbers(nodes))
    return tuple(dict.fromkeys(here))


def _is_about_the_same(one: GraphRecord, other: GraphRecord) -> bool:
    """Whether two graphs explain one metric of the same prompts."""
    names = ("prompt", "ids", "prompts_digest", "n_prompts", "target", "foil", "metric")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _found_on(request: Request, graph: CircuitGraph) -> tuple[Example, ...]:
    """The graph's own prompts, if nodes are to be ranked on them; none, with a warning, where they are not there."""
    settings = request.settings.validation
    if settings.curve != "all" and settings.basis is None:
        return ()
    try:
        return graph_examples(graph, request.run.path)
    except InputError as error:
        logger.warning("nodes are ranked on the prompts that they are tested on: %s", error.message)
        return ()


def _check_saes(graph: CircuitGraph, sources: dict[HookPoint, SaeSource]) -> None:
    for name, expected in graph.head.saes.items():
        source = sources.get(HookPoint.parse(name))
        if source is None or source.digest != expected:
            what = "is missing" if source is None else "has other weights or another configuration"
            raise InputError(
                f"the SAE at {name} that graph '{graph.head.name}' was made with {what}",
                hint="make the graph again, or name its SAEs with --sae PATH",
            )


def _trials(bench: Bench, cases: "PanelCases", ledger: Ledger) -> "dict[str, Trial]":
    """The test under each ablation, the judged one first."""
    from circuitcli.validation.scores import steps_named
    from circuitcli.validation.trial import Trial

    plan, settings = bench.plan, bench.plan.request.settings
    trial = Trial(
        cases,
        settings.validation,
        settings.seed,
        plan.metric.batch_size,
        keep=ledger.take,
        edges=bench.edges,
        means=bench.means(),
    )
    others = {
        name: replace(trial, cases=those, keep=steps_named(f"{name} ablation", ledger.take), is_main=False)
        for name, those in bench.under(plan.ablations, cases).items()
    }
    return {plan.baseline: trial, **others}


def _work(plan: Plan, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.progress import track
    from circuitcli.validation.tally import Tally
    from circuitcli.validation.trial import scored
    from circuitcli.validation.verdict import facts_of, judge

    bench = Bench.of(plan)
    cases = bench.cases()
    bench.warn_of_misfits(cases[0])
    settings = plan.request.settings
    with Ledger(plan.partial, plan.fingerprint().digest, resumes=resumes) as ledger:
        trials = _trials(bench, cases, ledger)
        if not any(trial.has_range for trial in trials.values()):
            plan.partial.unlink(missing_ok=True)
        about = plan.about(
            n_prompts=cases.panel.n_prompts,
            n_nodes=len(cases.nodes),
            held_out=settings.validation.prompts is not None or None,
        )
        made: list[Record] = []
        for ablation, measured in scored(trials):
            score = measured.record({**about, "ablation": ablation})
            ledger.add(score)
            made.append(score)
        curves = [curve.record({**about, "errors": settings.validation.errors}) for curve in _curves(trials)]
    tally = Tally(cases.nodes, bench.later, bench.language_model.tokenizer, top=plan.request.settings.validation.top)
    for case in track(cases, "ablated together", total=len(cases), unit="batches"):
        tally.add(case, [prompt.text for prompt in case.subject.prompts])
    joint = tally.result()
    effect = ScoreRecord(
        name="effect",
        value=joint.effect,
        unit=cases[0].subject.metric.unit,
        **plan.about(
            n_prompts=cases.panel.n_prompts,
            n_nodes=len(cases.nodes),
            standard_error=joint.standard_error,
            path=f"reports/{plan.name}.json",
            what="ablated together",
        ),
    )
    facts = facts_of(made)
    verdicts = [] if facts is None else [judge(facts).record({**about, "errors": settings.validation.errors})]
    write_report(
        plan,
        **_no_better(made),
        **{verdict.kind: verdict.model_dump(exclude_none=True) for verdict in verdicts},
        prompts=[{"prompt": example.prompt, **as_line(example)} for example in plan.examples],
        scores=[score.model_dump(exclude_none=True) for score in (*made, effect)],
        curves=[curve.model_dump(exclude_none=True) for curve in curves],
        ablated_together=asdict(joint),
    )
    figures = _drawn(plan, curves)
    plan.partial.unlink(missing_ok=True)
    return [*made, effect, *curves, *figures, *verdicts], {}


def _no_better(made: Sequence[Record]) -> dict[str, list[str]]:
    """The controls that the circuit does not beat, if it does not beat some."""
    from circuitcli.validation.verdict import beside, judged_score, unbeaten

    judged = judged_score(made)
    names = [] if judged is None else unbeaten(beside(made, judged))
    return {"no_better_than": names} if names else {}


def _drawn(plan: Plan, curves: Sequence[CurveRecord]) -> list[FigureRecord]:
    """The plot of the curves, if there are any."""
    if not curves:
        return []
    from circuitcli.render.faithfulness import plot
    from circuitcli.render.plots import write_plot

    figure = f"figures/{plan.name}-faithfulness.svg"
    write_plot(plot(curves, title=f"Circuits of {plan.graph}"), plan.request.run.path / figure)
    return [FigureRecord(path=figure)]


def _curves(trials: "Mapping[str, Trial]") -> "Iterator[Curve]":
    """Of the judged ablation, if it leaves something to explain."""
    judged = next(iter(trials.values()))
    return judged.faithfulness_curves() if judged.has_range else iter(())
