"""How many edges a frozen graph has, counted before any is taken, and which features will be chosen if not all are."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from circuitcli.attribution.frozen.nodes import Nodes
from circuitcli.attribution.frozen.rows import Chunk
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.hookpoints import HookPoint

# Rows of each coder that stand for all of its features.
_SAMPLE = 8


def possible_edges(search: FrozenSearch) -> NDArray[np.int64]:
    """For each feature, then each logit, how many nodes have a path to it and are not after it in the text."""
    nodes, model = search.nodes, search.model
    counts = [
        _sources_up_to(search, model.reached(model.seen.reads[active.hook]))[active.positions.cpu().numpy()]
        for active in nodes.active
    ]
    last = _sources_up_to(search, model.reached(model.seen.normed[0]))[-1]
    return np.concatenate([*counts, np.full(len(nodes.logits), last)])


def _sources_up_to(search: FrozenSearch, places: Mapping[HookPoint, bool]) -> NDArray[np.int64]:
    """How many nodes that write one of these places are at each position, and before it where that counts."""
    nodes, coders = search.nodes, search.subject.coders
    ones = np.ones(nodes.n_positions, dtype=np.int64)
    groups = [(ones, [place]) for place in places]
    for active in nodes.active:
        here = np.bincount(active.positions.cpu().numpy(), minlength=nodes.n_positions)
        groups.append((here, [place for place in coders[active.hook].writes if place in places]))
    found = np.zeros(nodes.n_positions, dtype=np.int64)
    for here, reached in groups:
        if reached:
            found += here.cumsum() if any(places[place] for place in reached) else here
    return found


def expected_edges(search: FrozenSearch, chosen: NDArray[np.float64] | None = None) -> int:
    """How many edges there will be, if attention is not zero between any two positions.

    chosen: how many features of each coder are expanded; by default as many of each.
    """
    counts, nodes = possible_edges(search), search.nodes
    share = search.n_expanded / max(nodes.n_features, 1)
    of_logits = int(counts[nodes.n_features :].sum())
    expanded = [share * len(active) for active in nodes.active] if chosen is None else chosen.tolist()
    means = [
        float(counts[active.start : active.start + len(active)].sum()) / max(len(active), 1) for active in nodes.active
    ]
    return of_logits + int(sum(mean * count for mean, count in zip(means, expanded, strict=True)))


def expected_features(search: FrozenSearch) -> NDArray[np.float64]:
    """Of each coder how many features will be expanded: all, or shares by its influence, which a few rows tell."""
    nodes = search.nodes
    sizes = np.array([len(active) for active in nodes.active], dtype=np.float64)
    left = float(search.n_expanded)
    if left >= sizes.sum():
        return sizes
    influence, found = _influence_of_coders(search), np.zeros(len(sizes))
    while left > 0.5:
        open_to = (found < sizes) & (influence > 0)
        open_to = open_to if open_to.any() else found < sizes
        weights = np.where(open_to, np.maximum(influence, 1e-12), 0)
        added = np.minimum(left * weights / weights.sum(), sizes - found)
        found, left = found + added, left - float(added.sum())
    return found


def _influence_of_coders(search: FrozenSearch) -> NDArray[np.float64]:
    """How much all features of each coder together matter, as if all of them read what a few of them do."""
    nodes = search.nodes
    found = nodes.weights[nodes.n_sources :] @ _shares(nodes, search.edges.into_logits())
    order = np.argsort([-nodes.orders[active.start] if len(active) else 0 for active in nodes.active])
    for number in order.tolist():
        active = nodes.active[number]
        if len(active):
            places = np.unique(np.linspace(0, len(active) - 1, _SAMPLE).astype(int)).tolist()
            found += found[number] * _shares(nodes, search.edges.into_features(active, places)).mean(axis=0)
    return found


def _shares(nodes: Nodes, chunk: Chunk) -> NDArray[np.float64]:
    """Which share of each row comes from the features of each coder."""
    starts = [active.start for active in nodes.active]
    rows = np.repeat(np.arange(len(chunk.targets)), np.diff(chunk.starts))
    sizes, groups = np.abs(chunk.values), np.searchsorted(starts, chunk.sources, side="right") - 1
    totals = np.bincount(rows, sizes, minlength=len(chunk.targets))
    shares = np.zeros((len(chunk.targets), len(starts)))
    is_feature = chunk.sources < nodes.n_features
    np.add.at(shares, (rows[is_feature], groups[is_feature]), sizes[is_feature])
    shares /= np.maximum(totals, 1e-10)[:, None]
    return shares
