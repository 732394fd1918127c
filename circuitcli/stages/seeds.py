"""A graph's circuit through the coders of another seed: what they are, and which of their features are its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import GraphRecord
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources
from circuitcli.stages.trials import Bench, Plan
from circuitcli.validation.stability import Found

if TYPE_CHECKING:
    from circuitcli.validation.refinding import Refinder
    from circuitcli.validation.scores import PanelCases


def seed_sources(request: Request, path: str, head: GraphRecord) -> dict[HookPoint, SaeSource]:
    """The coders of another seed at a graph's hook points. Raises InputError where there is none."""
    hooks = [HookPoint.parse(name) for name in head.saes]
    asked = replace(request, settings=request.settings.model_copy(update={"sae_path": path}))
    found = sae_sources(asked, stage="validate", layers={hook.layer for hook in hooks})
    if missing := [str(hook) for hook in hooks if hook not in found]:
        raise InputError(
            f"{path} has no SAE at {' '.join(missing)}, where graph '{head.name}' has one",
            hint=f"it has some at {' '.join(map(str, found))}; train them at the same hook points",
        )
    return {hook: found[hook] for hook in hooks}


def through(
    plan: Plan, head: GraphRecord, bench: Bench, cases: "PanelCases", *, sources: Mapping[HookPoint, SaeSource]
) -> "tuple[Bench, Refinder]":
    """The bench with the coders of another seed, and how the circuit is found through them."""
    from circuitcli.attribution.subject import fitted
    from circuitcli.saes.coders import Coders
    from circuitcli.validation.refinding import Refinder

    adapter = bench.language_model.adapter
    model = plan.request.settings.model.name
    loaded = load_saes(sources, sources, model=model, adapter=adapter, writes=plan.writes)
    coders = Coders.of(fitted(one.sae, adapter) for one in loaded.values())
    for hook, coder in coders.items():
        if coder.writes != bench.coders[hook].writes:
            raise InputError(
                f"the coder at {hook} in {sources[hook].place.path} writes {' '.join(map(str, coder.writes))}, that of "
                f"the graph {' '.join(map(str, bench.coders[hook].writes))}",
                hint="--sae-seeds takes coders that were trained alike, with another --seed",
            )
    other = Bench(replace(plan, row=None), bench.language_model, loaded, coders, {})
    panel = replace(cases.panel, coders=coders, baseline_of=other.rule.over(cases.panel.prompts))
    return other, Refinder.of(panel, head, plan.request.settings.graph)


def matched_names(bench: Bench, other: Bench, found: Found) -> tuple[dict[str, str], dict[str, Any]]:
    """Names in the graph's own coders of nodes of the other's, and how well they are matched. What is not matched gets
    a name that no node of the graph has."""
    from circuitcli.features.matching import matched

    nodes = [NodeId.parse(name) for name in found.nodes]
    features = {hook: {n.index for n in nodes if n.hook == hook and n.index is not None} for hook in other.coders}
    maps = {hook: matched(bench.coders[hook], other.coders[hook], wanted) for hook, wanted in features.items()}
    names = {}
    for node in nodes:
        if node.index is not None:
            own = maps[node.hook].get(node.index)
            names[str(node)] = f"unmatched {node}" if own is None else str(replace(node, index=own[0]))
    cosines = [cosine for one in maps.values() for _, cosine in one.values()]
    total = sum(map(len, features.values()))
    facts = {"matched": len(cosines) / total if total else None}
    return names, facts | {"cosine": sum(cosines) / len(cosines) if cosines else None}
