"""The strongest edges into nodes, means over a panel's prompts."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from circuitcli.attribution.averages import Average
from circuitcli.attribution.cells import ERROR, Cells
from circuitcli.attribution.edges import Target
from circuitcli.attribution.mean_edges import MISSED, PanelEdges
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.hookpoints import HookPoint

Key = tuple[HookPoint, Target]

# A node whose effect is less than this share of its largest edge has effects that cancel: what leads to it has edges
# near zero.
FAINT = 0.1


def edges_to_output(effects: PanelEffects, hook: HookPoint, count: int, *, least: float) -> dict[Target, float]:
    """The sizes of the ``count`` largest edges of each sign from what a hook point names straight to the output."""
    parts = [cells for batch in effects.panel.numbers for cells in _to_output(effects, batch, hook, least)]
    if not parts:
        return {}
    cells, n_prompts = Cells.merged(parts), effects.panel.n_prompts
    best = cells.at(cells.strongest(count))
    rows = zip(best.group.tolist(), best.node.tolist(), (best.total.abs() / n_prompts).tolist(), strict=True)
    return {Target(None if node == ERROR else node, group): size for group, node, size in rows if size >= least}


def _to_output(effects: PanelEffects, batch: int, hook: HookPoint, least: float) -> Iterator[Cells]:
    """Edges from a batch's features, and from its error, where they are not the whole effects."""
    panel, coders = effects.panel, effects.coders
    subject, _ = panel.subject(batch)
    masks, last = panel.masks(subject), (coders.written[-1],)
    one = torch.zeros(subject.n_texts, dtype=torch.int64, device=masks.device)
    least *= MISSED / (subject.n_spliced * panel.n_prompts)
    if hook in coders and coders[hook].writes != last and (found := effects.to_output(batch, hook)) is not None:
        for piece in found.parts.sparse(least):
            yield Cells.of(piece, masks=masks, targets=one, apart=panel.positions.kind == "all")
    if coders.writers(hook) and hook not in last:
        found = effects.to_output(batch, coders.group_of_error(hook))
        if found is not None and hook in found.errors:
            yield Cells.of_errors(panel.positions.summed(found.errors[hook][..., None], masks)[..., 0], targets=one)


def edges_into_faint(
    edges: PanelEdges, hook: HookPoint, targets: Mapping[Target, float], up: int, *, least: float
) -> list[tuple[Key, Target, Average, float]]:
    """The strongest edges into nodes whose gradient says nothing, by what they bring to the node's largest edge.

    targets: with the size of that edge. Given are source, target, the weight by the gradient, and that size.
    """
    values = {target: size / changes for target, size in targets.items() if (changes := edges.changed(hook, target))}
    if not values:
        return []
    nodes = list(values)
    found = strongest_edges(edges, hook, nodes, up, least=least, values=values)
    wanted = {(source, target) for source, target, _ in found}
    weights = {
        (source, target): weight
        for source, target, weight in all_edges(edges, hook, nodes, least=least * FAINT)
        if (source, target) in wanted
    }
    return [
        (source, target, weights.get((source, target), Average(0.0)), abs(through.value))
        for source, target, through in found
    ]


def all_edges(
    edges: PanelEdges, hook: HookPoint, targets: Sequence[Target], *, least: float
) -> Iterator[tuple[Key, Target, Average]]:
    """Source, target and weight of all edges into some nodes, but for some that are below ``least``."""
    for source, cells in edges.into(hook, targets, least=least):
        rows = zip(cells.target.tolist(), cells.group.tolist(), cells.node.tolist(), strict=True)
        for (number, group, node), weight in zip(rows, cells.averages(edges.panel.n_prompts), strict=True):
            yield (source, Target(None if node == ERROR else node, group)), targets[number], weight


def strongest_edges(
    edges: PanelEdges,
    hook: HookPoint,
    targets: Sequence[Target],
    up: int,
    *,
    least: float = 0.0,
    values: Mapping[Target, float] | None = None,
) -> list[tuple[Key, Target, Average]]:
    """Source, target and weight of the strongest edges of each sign into each of some nodes, of size ``least``.

    values: as of `PanelEdges.into`.
    """
    if not targets:
        return []
    sources: list[HookPoint] = []
    best: Cells | None = None
    origin = torch.zeros(0, dtype=torch.int64)
    n_prompts = edges.panel.n_prompts
    for source, cells in edges.into(hook, targets, least=least, values=values):
        if source not in sources:
            sources.append(source)
        cells = cells.at(cells.total.abs() >= least * n_prompts)
        here = torch.full((len(cells),), sources.index(source), device=cells.target.device)
        joined = cells if best is None else Cells.joined([best, cells])
        origin = torch.cat([origin.to(here), here])
        chosen = joined.strongest(up)
        best, origin = joined.at(chosen), origin[chosen]
    if best is None:
        return []
    rows = zip(origin.tolist(), best.target.tolist(), best.group.tolist(), best.node.tolist(), strict=True)
    return [
        ((sources[place], Target(None if node == ERROR else node, group)), targets[number], weight)
        for (place, number, group, node), weight in zip(rows, best.averages(n_prompts), strict=True)
    ]
