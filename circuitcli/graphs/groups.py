"""Nodes that play the same part in a graph: groups (supernodes) proposed by how alike their edges are.

A feature's profile has two halves, its edges from each other node and its edges to each other node. An edge counts by
its weight, with the sign, as a share of all that its target gets, ``w / sum |w into the target|``: targets are in units
of their own. Either half that is not empty has length 1 and the whole has length 1 too, so that the cosine of two
profiles is the mean of what their inputs and what their outputs have in common. Groups are made by complete link: any
two members are at least as alike as the threshold says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from circuitcli.graphs.graph import CircuitGraph, Node
from circuitcli.graphs.pruning import sorted_graph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# What a single edge leads to, many others lead to: that alone makes no two features alike.
_LEAST_EDGES = 2
# Of larger graphs the strongest features: the cosines of all pairs are in memory at once.
MOST_FEATURES = 2000
# Further apart than any cosine, so that complete link never joins them.
_NEVER = 4.0


@dataclass(frozen=True)
class Group:
    """Features with similar edges, in the order of the model; ``cosine`` is that of the two least alike."""

    members: tuple[str, ...]
    cosine: float


def similar_groups(graph: CircuitGraph, *, least: float, span: int = 0) -> tuple[Group, ...]:
    """Groups of two or more features of which any two have a cosine of at least ``least``, the largest first.

    span: how many blocks members may lie apart; those of one group are at one site. Features with a single
    edge are in no group.
    """
    graph = sorted_graph(graph)
    features = _candidates(graph)
    if len(features) < 2:
        return ()
    profiles = edge_profiles(graph, features)
    cosines = np.clip((profiles @ profiles.T).toarray(), -1.0, 1.0)  # (feature, feature)
    distances = np.where(_may_join(features, span), 1 - cosines, _NEVER)
    groups = [
        Group(tuple(features[number].id for number in members), float(cosines[np.ix_(members, members)].min()))
        for members in _complete_link(distances, 1 - least)
        if len(members) > 1
    ]
    return tuple(sorted(groups, key=lambda group: -len(group.members)))


def edge_profiles(graph: CircuitGraph, features: Sequence[Node]) -> "csr_array":
    """The profiles of features in rows, (feature, 2 x node): edges from each node, then edges to each."""
    columns = {node.id: number for number, node in enumerate(graph.nodes)}
    rows = {node.id: number for number, node in enumerate(features)}
    totals: dict[str, float] = {}
    for edge in graph.edges:
        totals[edge.target] = totals.get(edge.target, 0.0) + abs(edge.weight)
    halves: tuple[list[tuple[int, int, float]], ...] = ([], [])
    for edge in graph.edges:
        share = edge.weight / totals[edge.target] if edge.weight else 0.0
        if edge.target in rows:
            halves[0].append((rows[edge.target], columns[edge.source], share))
        if edge.source in rows:
            halves[1].append((rows[edge.source], columns[edge.target], share))
    from scipy.sparse import hstack

    shape = (len(features), len(columns))
    return _of_length_one(hstack([_of_length_one(_matrix(half, shape)) for half in halves], format="csr"))


def _matrix(entries: Sequence[tuple[int, int, float]], shape: tuple[int, int]) -> "csr_array":
    from scipy.sparse import csr_array

    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    places = (np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))
    return csr_array((np.array(values, dtype=np.float64), places), shape=shape)


def _of_length_one(rows: "csr_array") -> "csr_array":
    lengths = np.sqrt(rows.multiply(rows).sum(axis=1))
    return rows.multiply((1 / np.where(lengths > 0, lengths, 1.0))[:, None]).tocsr()


def _candidates(graph: CircuitGraph) -> list[Node]:
    """The features with enough edges, of very many the strongest, in the order of the graph."""
    counts: dict[str, int] = {}
    for edge in graph.edges:
        if edge.weight:
            for end in (edge.source, edge.target):
                counts[end] = counts.get(end, 0) + 1
    found = [node for node in graph.nodes if node.kind == "feature" and counts.get(node.id, 0) >= _LEAST_EDGES]
    strongest = sorted(found, key=lambda node: -abs((node.influence if node.effect is None else node.effect) or 0.0))
    kept = {node.id for node in strongest[:MOST_FEATURES]}
    return [node for node in found if node.id in kept]


def _may_join(features: Sequence[Node], span: int) -> NDArray[np.bool_]:
    """Which pairs may stand in one group: of one site, and few enough blocks apart."""
    hooks = [place.hook for node in features if (place := node.place) is not None]
    layers = np.array([hook.layer for hook in hooks])
    sites = np.array([hook.site for hook in hooks])
    near: NDArray[np.bool_] = np.abs(layers[:, None] - layers) <= span
    return near & (sites[:, None] == sites)


def _complete_link(distances: NDArray[np.float64], largest: float) -> list[list[int]]:
    """Clusters in which no two are further apart than this, members in their order."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    # Rounding leaves the cosine of a profile with itself a little off.
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(np.maximum(distances, 0.0), checks=False), "complete")
    numbers = fcluster(tree, largest, "distance")
    clusters: dict[int, list[int]] = {}
    for feature, number in enumerate(numbers.tolist()):
        clusters.setdefault(number, []).append(feature)
    return list(clusters.values())
