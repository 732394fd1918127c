"""From prompts and coders to a graph, step by step: run, code, effects, select, edges, assemble.

`panel_of` runs and codes the prompts, each batch when it is needed; `selection.find_circuit` takes effects, selects
nodes and follows edges, hook point by hook point; `gradient_graph` assembles what it kept. `naive_graph` assembles what
single ablations have shown.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from circuitcli.attribution.baselines import BaselineRule, differs
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.exact_edges import agreement, with_exact
from circuitcli.attribution.gaps import sums_of, warn_of_gaps
from circuitcli.attribution.naive import NaivePart, NaiveSearch
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions, chosen_kind
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.selection import Circuit, find_circuit, least_size
from circuitcli.attribution.traces import runs_of, with_traces
from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.cumulative import pruned_by_influence
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.records import GraphRecord
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings

logger = logging.getLogger(__name__)


def panel_of(
    model: LanguageModel,
    coders: Coders,
    prompts: Sequence[Prompt],
    settings: GraphSettings,
    *,
    rule: BaselineRule,
    usual: str,
) -> Panel:
    """The prompts, to be run through the coders. ``usual``: the positions of nodes where the settings name none.

    Raises SettingsError for positions that the prompts do not have in common.
    """
    kind = chosen_kind(settings.positions, prompts, default=usual)
    return Panel.of(
        model.adapter,
        coders,
        prompts,
        metric=settings.metric,
        positions=Positions.of(kind, prompts),
        baseline_of=rule,
        batch_size=settings.batch_size,
        token_names=model.tokenizer.token_strings,
    )


def gradient_facts(settings: GraphSettings) -> dict[str, Any]:
    """What the head of a gradient graph tells of how it is found."""
    is_refined = settings.refine > 0 and settings.method != "exact"
    return {
        "method": f"grad-{settings.method}" + ("-refined" if is_refined else ""),
        "refined": settings.refine if is_refined else None,
        "steps": 1 if settings.method in OF_ONE_GRADIENT else settings.ig_steps,
        **_selection_facts(settings),
    }


def _selection_facts(settings: GraphSettings) -> dict[str, Any]:
    """What the head tells of how nodes and edges were chosen."""
    names = ["down", "up", "min_share", "min_effect", "strongest", "edge_points"]
    if settings.method in OF_ONE_GRADIENT:
        # Of the clean run alone.
        names.remove("edge_points")
    shares = settings.shares_of_influence if settings.prunes_by_influence else {}
    return {name: getattr(settings, name) for name in names} | shares


def gradient_graph(panel: Panel, settings: GraphSettings, head: GraphRecord) -> CircuitGraph:
    """The gradient graph of a panel. Logs a warning, with the cause, if it has no node."""
    circuit = find_circuit(panel, settings)
    facts = {"effects": sums_of(circuit.totals), "share_kept": circuit.share_kept}
    graph = circuit.graph(head.model_copy(update=facts))
    warn_of_gaps(graph.head)
    if settings.prunes_by_influence:
        graph = pruned_by_influence(graph, **settings.shares_of_influence)
    if settings.edges_exact and graph.edges:
        edges = with_exact(panel, graph.edges, count=settings.edges_exact, batch_size=settings.batch_size)
        graph = replace(graph, edges=edges, head=graph.head.model_copy(update={"checks": agreement(edges)}))
    if len(graph.nodes) <= 1:
        _warn_of_emptiness(head, _why_empty(panel, circuit, settings=settings, unit=head.unit))
    return with_traces(graph, runs_of(panel))


def naive_graph(search: NaiveSearch, head: GraphRecord, part: Callable[[HookPoint], NaivePart]) -> CircuitGraph:
    """The graph of single ablations; ``part`` makes those of a hook point. Logs a warning if it has no node."""
    parts = [part(hook) for hook in search.panel.hooks]
    kept, dropped = sum(one.kept_total for one in parts), sum(one.dropped_total for one in parts)
    share = kept / (kept + dropped) if kept + dropped > 0 else None
    graph = search.graph(head.model_copy(update={"share_kept": share}), parts)
    if len(graph.nodes) <= 1:
        _warn_of_emptiness(head, _why_nothing_differs(search.panel) or _why_too_small(search, parts))
    return with_traces(graph, runs_of(search.panel))


def check_pins(search: NaiveSearch) -> None:
    """Raise InputError for a pin that is not there, before the first ablation."""
    for hook in search.pins:
        search.sources(hook)


def _why_too_small(search: NaiveSearch, parts: Sequence[NaivePart]) -> str:
    """What a naive graph without nodes lacks where nodes differ from their baseline."""
    effects = [node.effect for part in parts for node in part.nodes if node.effect is not None]
    if not any(effects) and not any(part.kept_total + part.dropped_total for part in parts):
        return "ablating its nodes changes neither the metric nor a later feature: they do not reach the output"
    return f"no difference is above {search.threshold:g}; lower --threshold-exp"


def _warn_of_emptiness(head: GraphRecord, why: str) -> None:
    logger.warning("graph %s has no node: %s", head.name, why)


def _why_empty(panel: Panel, circuit: Circuit, *, settings: GraphSettings, unit: str) -> str:
    """What a gradient graph without nodes lacks."""
    if not any(total.features or total.errors for total in circuit.totals.values()):
        return _why_nothing_differs(panel) or "no node has an effect on the metric"
    if not _largest_effect(panel, settings):
        return "no node at its positions has an effect on the metric: they do not reach the output"
    return f"no node has an effect of {least_size(panel, settings):.2g} {unit} or more; lower --min-share"


def _largest_effect(panel: Panel, settings: GraphSettings) -> float:
    """Size of the largest effect of all nodes, kept or not."""
    effects = effects_of_panel(panel, settings)
    features = (means for hook in panel.coders for means in effects.of_features(hook))
    errors = (means for hook in panel.coders.written for means in effects.of_error(hook))
    return max((float(means.values.abs().max()) for means in chain(features, errors)), default=0.0)


def _why_nothing_differs(panel: Panel) -> str | None:
    """What a graph without nodes comes from, if every feature and error is at its baseline already."""
    for subject, baseline in panel.subjects():
        pairs = [(subject.codes, baseline.codes), (subject.errors, baseline.errors)]
        if any(bool(differs(value, absent[hook]).any()) for values, absent in pairs for hook, value in values.items()):
            return None
    return "every feature and error is at its baseline already"
