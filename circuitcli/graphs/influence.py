"""How much each node of a frozen graph matters to the output, which are kept, and how much of it features explain.

As circuit-tracer (Ameisen et al. 2025) defines them, on sparse rows. With ``A[t, s]`` the edge s -> t and
``N[t, s] = |A[t, s]| / sum over s of |A[t, s]|``, and w the probabilities of the logits,

    influence = w N + w N^2 + ...

which, as every edge leads forward in the model, is one pass over the rows from the last target to the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FEATURE, ERROR, TOKEN, LOGIT = range(4)

Floats = NDArray[np.floating]
# Numbers that are in memory at once, a few times over.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Rows:
    """Edges by target, sparse: those into ``targets[r]`` are ``starts[r]`` to ``starts[r + 1]``.

    kinds, orders, weights: of all nodes what each is, where in the model, and the probability if it is a logit. Rows
    come by falling order of their targets. Sources are nodes of lower order.
    """

    kinds: NDArray[np.int8]
    orders: NDArray[np.int32]
    weights: NDArray[np.float64]
    targets: NDArray[np.int64]
    starts: NDArray[np.int64]
    sources: NDArray[np.int32]
    values: Floats

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.kinds)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.values)

    @property
    def n_bytes(self) -> int:
        """Size of its arrays."""
        return sum(part.nbytes for part in vars(self).values())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of edges of each row."""
        return np.diff(self.starts)

    @property
    def edge_targets(self) -> NDArray[np.int64]:
        """The target of each edge."""
        return np.repeat(self.targets, self.counts)

    def totals(self) -> NDArray[np.float64]:
        """Of each row the sum of the sizes of its edges."""
        return np.concatenate([_sums(np.abs(part.values), part.starts) for part in self.parts()] or [np.zeros(0)])

    def parts(self) -> Iterator["Rows"]:
        """Rows whose targets have one order, from the last to the first; a few at a time."""
        orders = self.orders[self.targets]
        first = 0
        while first < len(self.targets):
            last = int(np.searchsorted(-orders, -orders[first], side="right"))
            room = int(np.searchsorted(self.starts, self.starts[first] + _AT_ONCE, side="right")) - 1
            last = min(last, max(room, first + 1))
            yield self._rows(first, last)
            first = last

    def _rows(self, first: int, last: int) -> "Rows":
        begin, end = self.starts[first], self.starts[last]
        return replace(
            self,
            targets=self.targets[first:last],
            starts=self.starts[first : last + 1] - begin,
            sources=self.sources[begin:end],
            values=self.values[begin:end],
        )

    def kept(self, edges: NDArray[np.bool_]) -> "Rows":
        """Only some edges; rows stay."""
        starts = np.concatenate([[0], np.cumsum(_sums(edges, self.starts))]).astype(np.int64)
        return replace(self, starts=starts, sources=self.sources[edges], values=self.values[edges])


def _sums(values: NDArray[np.generic], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the values of each row; rows may be empty."""
    if not len(values):
        return np.zeros(len(starts) - 1)
    sums = np.add.reduceat(np.append(values, 0), starts[:-1], dtype=np.float64)
    return np.where(np.diff(starts) > 0, sums, 0.0)


def influence(rows: Rows) -> NDArray[np.float64]:
    """How much each node matters to the logits, by way of all paths: the larger, the more."""
    found = np.zeros(rows.n_nodes)
    for part in rows.parts():
        totals = part.totals()
        mass = (found + rows.weights)[part.targets] / np.maximum(totals, 1e-10)
        found += np.bincount(part.sources, np.abs(part.values) * np.repeat(mass, part.counts), minlength=rows.n_nodes)
    return found


@dataclass(frozen=True)
class Pruned:
    """What is kept of a graph; ``influence`` is that of each node before."""

    nodes: NDArray[np.bool_]
    rows: Rows
    influence: NDArray[np.float64]


def prune(rows: Rows, *, node_threshold: float, edge_threshold: float) -> Pruned:
    """The nodes that have this share of the influence, tokens and logits too; between them the edges that have this
    share of theirs (1 keeps all that are not zero); without features and errors that lead nowhere, and features that
    nothing leads to any more; those that nothing led to before, as of what reads a constant MLP, are sources as errors
    are."""
    before, led_to = influence(rows), np.zeros(rows.n_nodes, dtype=bool)
    led_to[rows.targets[rows.counts > 0]] = True
    nodes = at_least(before, node_threshold) | np.isin(rows.kinds, (TOKEN, LOGIT))
    left = rows.kept(nodes[rows.sources] & nodes[rows.edge_targets] & (rows.values != 0))
    after = influence(left)
    mass = np.repeat((after + rows.weights)[left.targets] / np.maximum(left.totals(), 1e-10), left.counts)
    left = left.kept(at_least(np.abs(left.values) * mass, edge_threshold))
    nodes = _cleaned(left, nodes, led_to=led_to & (rows.kinds == FEATURE))
    return Pruned(nodes, left.kept(nodes[left.sources] & nodes[left.edge_targets]), before)


def at_least(scores: Floats, share: float) -> NDArray[np.bool_]:
    """The largest scores that add up to a share of all, with all that are as large as the least of them; of zeros
    none."""
    total = scores.sum(dtype=np.float64)
    if share >= 1 or total <= 0:
        return scores > 0
    ranked = np.sort(scores)[::-1]
    reached = np.cumsum(ranked, dtype=np.float64) >= share * total
    least = ranked[int(reached.argmax())] if reached.any() else 0.0
    kept: NDArray[np.bool_] = (scores >= least) & (scores > 0)
    return kept


def _cleaned(rows: Rows, nodes: NDArray[np.bool_], *, led_to: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without what leads nowhere, and what nothing leads to any more, until there is none. led_to: what something led
    to."""
    targets, movable = rows.edge_targets, np.isin(rows.kinds, (FEATURE, ERROR))
    while True:
        live = nodes[rows.sources] & nodes[targets]
        leads = np.bincount(rows.sources[live], minlength=rows.n_nodes) > 0
        is_led_to = np.bincount(targets[live], minlength=rows.n_nodes) > 0
        kept = nodes & (leads | ~movable) & (is_led_to | ~led_to)
        if (kept == nodes).all():
            return kept
        nodes = kept


@dataclass(frozen=True)
class Scores:
    """How much of the influence comes from tokens rather than errors, and how much of what leads into nodes are no
    errors; once as circuit-tracer counts, where errors and tokens, which nothing leads into, are fully explained, and
    once over nodes that something leads into."""

    replacement: float
    completeness: float
    completeness_of_inputs: float


def scores(rows: Rows) -> Scores:
    """The scores of a whole graph; 1 where nothing has influence."""
    found = influence(rows)
    tokens, errors = (found[rows.kinds == kind].sum() for kind in (TOKEN, ERROR))
    explained = np.ones(rows.n_nodes)
    has_inputs = np.zeros(rows.n_nodes, dtype=bool)
    for part in rows.parts():
        totals, sizes = part.totals(), np.abs(part.values) * (rows.kinds[part.sources] == ERROR)
        explained[part.targets] = 1 - _sums(sizes, part.starts) / np.maximum(totals, 1e-10)
        has_inputs[part.targets] = totals > 0
    mass = found + rows.weights
    return Scores(
        replacement=_share(tokens, tokens + errors),
        completeness=_share((explained * mass).sum(), mass.sum()),
        completeness_of_inputs=_share((explained * mass)[has_inputs].sum(), mass[has_inputs].sum()),
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 1.0
