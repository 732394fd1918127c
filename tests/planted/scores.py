"""How well a method finds a planted circuit: do true nodes and edges rank above all others, and is the graph made of
them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from circuitcli.attribution.cells import ERROR
from circuitcli.attribution.edges import Target, ends_of, sources_of
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.attribution.mean_edges import PanelEdges
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.selection import find_circuit
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId, logit_name
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.circuits import circuit_metric, kept_nodes

from .planted import Pair, Planted

# Below this share of the behaviour an effect or an edge is what norms carry.
NOISE = 1e-3
# What differs by less is a rounding error.
FELT = 1e-9


def auroc(scores: Mapping, true: Iterable) -> float:
    """The chance that one that is true scores above one that is not; ties count half. What has no score has 0."""
    real = sorted(abs(scores.get(one, 0.0)) for one in true)
    wanted = set(true)
    others = torch.tensor(sorted(abs(value) for one, value in scores.items() if one not in wanted), dtype=torch.float64)
    if not real or not len(others):
        return float("nan")
    points = torch.tensor(real, dtype=torch.float64)
    below = torch.searchsorted(others, points)
    beside = torch.searchsorted(others, points, right=True) - below
    return float((below + beside / 2).mean() / len(others))


def node_scores(panel: Panel, settings: GraphSettings) -> dict[str, float]:
    """Effects that a method gives to all nodes, before any is chosen."""
    effects, scores = effects_of_panel(panel, settings), {}
    for hook in panel.hooks:
        targets = _targets(panel, hook)
        names = [panel.node_id(hook, target.index, target.group) for target in targets]
        found = effects.averages(hook, targets) if targets else []
        scores |= {name: one.value for name, one in zip(names, found, strict=True)}
    return scores


def edge_scores(panel: Panel, settings: GraphSettings) -> dict[Pair, float]:
    """Weights that a method gives to all edges that there can be, zero where it has none."""
    edges = PanelEdges(effects_of_panel(panel, settings))
    places = {hook: _targets(panel, hook, least=FELT) for hook in panel.hooks}
    scores: dict[Pair, float] = {}
    for hook, targets in places.items():
        if not targets:
            continue
        if set(sources_of(panel.coders, None)) & set(_written(panel, hook)):
            found = edges.effects.averages_to_output(hook, targets)
            names = [panel.node_id(hook, target.index, target.group) for target in targets]
            scores |= {(name, OUTPUT): one.value for name, one in zip(names, found, strict=True)}
        scores |= _into(edges, hook, targets, places)
    return scores


def frozen_scores(planted: Planted) -> tuple[dict[str, float], dict[Pair, float]]:
    """Effects of nodes and weights of edges in the frozen graph, before anything is pruned; edges into the two logits
    are those into what sets them apart. Tokens, which are no nodes of other graphs, are left out."""
    settings = GraphSettings(metric="logit-diff", max_nodes=10**6)
    search = FrozenSearch.of(planted.panel("zero"), settings)
    names = [search.nodes.name(number) for number in range(search.nodes.n)]
    is_token = [name.startswith("embed") for name in names]
    effects = search.effects.tolist()
    found = {name: effects[number] for number, name in enumerate(names[: len(effects)]) if not is_token[number]}
    weights: dict[Pair, float] = {}
    rows, target = search.rows, logit_name(planted.prompt.target or 0)
    for source, end, weight in zip(
        rows.sources.tolist(), rows.edge_targets.tolist(), rows.values.tolist(), strict=True
    ):
        if is_token[source]:
            continue
        is_logit = end >= search.nodes.n_sources
        pair = (names[source], OUTPUT if is_logit else names[end])
        weights[pair] = weights.get(pair, 0.0) + (-weight if is_logit and names[end] != target else weight)
    # Where the frozen model has no edge there may be one.
    possible = edge_scores(planted.panel("zero"), GraphSettings(method="atp"))
    return found, {**dict.fromkeys(possible, 0.0), **weights}


def _written(panel: Panel, hook: HookPoint) -> tuple[HookPoint, ...]:
    return panel.coders[hook].writes if hook in panel.coders else (hook,)


def _targets(panel: Panel, hook: HookPoint, *, least: float = 0.0) -> list[Target]:
    """Nodes that differ from their baseline by more than this."""
    subject, baseline = panel.subject(0)
    found = []
    if hook in panel.coders:
        differs = ((subject.codes[hook] - baseline.codes[hook])[0].abs() > least).nonzero().tolist()
        found += [Target(index, position) for position, index in differs]
    if panel.coders.writers(hook):
        found += [Target(None, position) for position in range(subject.n_spliced)]
    return found


def _into(
    edges: PanelEdges, hook: HookPoint, targets: list[Target], places: Mapping[HookPoint, list[Target]]
) -> dict[Pair, float]:
    """Edges into targets from all that can have one, zero where the method has none."""
    panel, weights = edges.panel, {}
    for is_error in (False, True):
        some = [target for target in targets if (target.index is None) == is_error]
        near = set(sources_of(panel.coders, ends_of(panel.coders, hook, is_error=is_error))) if some else set()
        for source, nodes in places.items():
            if source < hook and near & set(_written(panel, source)):
                weights |= {
                    (
                        panel.node_id(source, node.index, node.group),
                        panel.node_id(hook, target.index, target.group),
                    ): 0.0
                    for target in some
                    for node in nodes
                    if node.group == target.group or (node.group < target.group and _moves(panel, hook))
                }
        for place, cells in edges.into(hook, some) if some else ():
            found = zip(
                cells.target.tolist(), cells.group.tolist(), cells.node.tolist(), cells.total.tolist(), strict=True
            )
            for row, group, node, weight in found:
                source = panel.node_id(place, None if node == ERROR else node, group)
                pair = (source, panel.node_id(hook, some[row].index, some[row].group))
                if pair in weights:
                    weights[pair] = weight
    return weights


def _moves(panel: Panel, hook: HookPoint) -> bool:
    """Whether something can come from an earlier position: where no attention is spliced, anything can."""
    return hook.site == "attn" or not any(place.site == "attn" for place in panel.coders.written)


@dataclass(frozen=True)
class Judged:
    """AUROC of nodes and of edges; of the graph that is found how many of its nodes and edges there are and how many
    are noise, which of the true ones it lacks, and how faithful it is; how many true ones the method says to be noise;
    and the largest gap of the effects, as a share of the behaviour."""

    node_auroc: float
    edge_auroc: float
    n_nodes: int
    n_edges: int
    noise_nodes: int
    noise_edges: int
    lost_nodes: tuple[str, ...]
    lost_edges: tuple[Pair, ...]
    faint_nodes: int
    faint_edges: int
    faithfulness: float
    gap: float


def judged(planted: Planted, kind: str, settings: GraphSettings) -> Judged:
    """How well a method with these settings finds a planted circuit."""
    panel, truth = planted.panel(kind), planted.truth[kind]
    of_nodes, of_edges = node_scores(panel, settings), edge_scores(panel, settings)
    circuit = find_circuit(panel, settings)
    nodes = [node for node in circuit.nodes if node.id != OUTPUT]
    ids, pairs = {node.id for node in nodes}, {(edge.source, edge.target) for edge in circuit.edges}
    reached = behaviour(planted, kind)
    gaps = [total.gap for total in circuit.totals.values() if total.gap is not None]
    wanted = truth.nodes | truth.unseen
    return Judged(
        node_auroc=auroc(of_nodes, wanted),
        edge_auroc=auroc(of_edges, truth.edges),
        n_nodes=len(nodes),
        n_edges=len(pairs),
        noise_nodes=sum(abs(node.effect or 0.0) < NOISE * reached for node in nodes),
        noise_edges=sum(abs(edge.weight) < NOISE * reached for edge in circuit.edges),
        lost_nodes=tuple(sorted(wanted - ids)),
        lost_edges=tuple(sorted(truth.edges - pairs)),
        faint_nodes=sum(abs(of_nodes.get(one, 0.0)) < NOISE * reached for one in wanted),
        faint_edges=sum(abs(of_edges.get(one, 0.0)) < NOISE * reached for one in truth.edges),
        faithfulness=faithfulness(planted, kind, ids),
        gap=max((abs(gap) for gap in gaps), default=0.0) / reached,
    )


def behaviour(planted: Planted, kind: str) -> float:
    """How far the metric is from what it is without any node."""
    return abs(float(planted.subject.metric_clean) - _with_only(planted, kind, ()))


def faithfulness(planted: Planted, kind: str, ids: Iterable[str]) -> float:
    """Of a circuit of these nodes."""
    empty = _with_only(planted, kind, ())
    return (_with_only(planted, kind, ids) - empty) / (float(planted.subject.metric_clean) - empty)


def _with_only(planted: Planted, kind: str, ids: Iterable[str]) -> float:
    kept = kept_nodes(planted.subject, [NodeId.parse(one) for one in ids])
    return float(circuit_metric(planted.subject, planted.baseline(kind), [kept], batch_size=1))
