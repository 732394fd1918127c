"""What a test of a circuit is about: the graph and its nodes, the prompts and the metric, the controls."""

import logging
from collections.abc import Collection
from dataclasses import replace

from circuitcli import graphs
from circuitcli.attribution.examples import Example, LeftOut
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, ablated_nodes, edges_between, strongest_nodes
from circuitcli.hookpoints import HookPoint, NodeId, without_numbers
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings
from circuitcli.stages.inputs import chosen_graph
from circuitcli.stages.prompts import graph_examples
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, sae_sources
from circuitcli.stages.trials import Plan
from circuitcli.validation.effects import effects_like

logger = logging.getLogger(__name__)

MORE_NODES = (
    "make a larger one: graph-grad with more --down, or less --min-share; graph-grad --frozen with more "
    "--node-threshold; graph-naive with less --threshold-exp"
)
# A position that every prompt has.
_LAST = "last"


def planned_test(request: Request) -> Plan:
    """The test that is asked for. Raises InputError for a graph, SAEs or prompts that do not fit together."""
    settings = request.settings.validation
    graph = chosen_graph(request, settings.graph, stage="validate")
    sources = sae_sources(request, stage="validate")
    hooks = tuple(HookPoint.parse(name) for name in graph.head.saes)
    writes = frozenset(HookPoint.parse(name) for hook in graph.head.saes for name in graph.head.written(hook))
    _check_saes(graph, sources)
    nodes = _nodes(graph, hooks, writes)
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


def _nodes(graph: CircuitGraph, hooks: Collection[HookPoint], writes: Collection[HookPoint]) -> tuple[NodeId, ...]:
    """The graph's nodes. Raises InputError if there is none, or one of a coder that the head does not name."""
    nodes = ablated_nodes(graph)
    if not nodes:
        raise InputError(f"graph '{graph.head.name}' has no node", hint=MORE_NODES)
    if lost := [node for node in nodes if node.hook not in (writes if node.is_error else hooks)]:
        origin = graph.head.origin
        hint = "make the graph again" if origin is None else f"what {origin} writes can be drawn, but names no coders"
        raise InputError(f"graph '{graph.head.name}' has {lost[0]}, but its head names no SAE there", hint=hint)
    return nodes


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
        raise InputError(f"the control graph '{head.name}' has no node", hint=MORE_NODES)
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
