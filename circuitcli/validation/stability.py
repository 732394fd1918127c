"""How far a circuit depends on the sample of prompts, or on the seed of the coders, that it was found with.

The circuit is found again, with its own settings, on bootstrap samples of its prompts, on halves of them, and through
the coders of other seeds. Circuits are compared by the Jaccard index of their nodes and of their edges (shared over all
that either has), and by Spearman's rank correlation of effects and weights over all that either has, what a circuit
lacks counting as zero. Of bootstrap samples all pairs are compared: two users with two samples of the same prompts see
so much of each other's circuit. The bar of 0.8 is that which arXiv:2510.00845 proposes.
"""

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, quantiles
from typing import Any, get_args

import numpy as np

from circuitcli.attribution.correlation import mean_ranks
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings

BAR = 0.8


def method_of(head: GraphRecord) -> str:
    """What the settings call the method of a gradient graph, whether it was refined or not; else what the head says."""
    refined = head.method.removesuffix("-refined")
    return refined.removeprefix("grad-") if refined.startswith("grad-") else head.method


def check_gradient(head: GraphRecord) -> None:
    """Raise InputError unless the graph was found by a search from gradients, which is what is done again."""
    if method_of(head) not in get_args(GraphSettings.model_fields["method"].annotation):
        raise InputError(
            f"graph '{head.name}' was made by another method ({head.method}) than those that can be repeated",
            hint="make one with `circuit graph-grad`, or leave out --stability and --sae-seeds",
        )


@dataclass(frozen=True)
class Found:
    """What a search kept: effects of nodes by name, weights of edges by the names of their ends."""

    nodes: Mapping[str, float]
    edges: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, graph: CircuitGraph) -> "Found":
        """That of a graph, without the output, which all have."""
        return cls(
            {node.id: node.effect or 0.0 for node in graph.nodes if not node.is_output},
            {(edge.source, edge.target): edge.weight for edge in graph.edges},
        )

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"nodes": dict(self.nodes), "edges": [[*ends, weight] for ends, weight in self.edges.items()]}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Found":
        """What `content` gave. Raises KeyError, TypeError or ValueError for what it did not give."""
        nodes = {str(name): float(effect) for name, effect in content["nodes"].items()}
        return cls(nodes, {(str(source), str(target)): float(weight) for source, target, weight in content["edges"]})

    def renamed(self, names: Mapping[str, str]) -> "Found":
        """With other names of nodes, where there are."""
        return Found(
            {names.get(name, name): effect for name, effect in self.nodes.items()},
            {
                (names.get(source, source), names.get(target, target)): weight
                for (source, target), weight in self.edges.items()
            },
        )


@dataclass(frozen=True)
class Agreement:
    """How much two circuits have in common; a rank correlation is None where one of the two has no order."""

    nodes: float
    edges: float
    node_ranks: float | None
    edge_ranks: float | None


def agreement(one: Found, other: Found) -> Agreement:
    """Of two circuits, the same in either order."""
    return Agreement(
        nodes=jaccard(one.nodes.keys(), other.nodes.keys()),
        edges=jaccard(one.edges.keys(), other.edges.keys()),
        node_ranks=rank_correlation(one.nodes, other.nodes),
        edge_ranks=rank_correlation(one.edges, other.edges),
    )


def jaccard(one: AbstractSet[Hashable], other: AbstractSet[Hashable]) -> float:
    """What both have as a share of what either has; 1 for two empty sets."""
    either = one | other
    return len(one & other) / len(either) if either else 1.0


def rank_correlation(one: Mapping[Any, float], other: Mapping[Any, float]) -> float | None:
    """Spearman's, over all that either has, zero where it is missing; equal values share their mean rank.

    None where there are fewer than two values, or all of one side are equal.
    """
    keys = [*dict.fromkeys((*one, *other))]
    if not keys:
        return None
    ranks = (mean_ranks(np.array([values.get(key, 0.0) for key in keys])) for values in (one, other))
    left, right = (values - values.mean() for values in ranks)
    squares = float(left @ left), float(right @ right)
    return float(left @ right) / (squares[0] * squares[1]) ** 0.5 if min(squares) > 0 else None


@dataclass(frozen=True)
class Spread:
    """Agreements of many pairs of circuits, in one number of each: shares, or rank correlations."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the pairs."""
        return fmean(self.values)

    def quantile(self, share: float) -> float:
        """Of the pairs, linear between neighbours."""
        if len(self.values) == 1:
            return self.values[0]
        cuts = quantiles(self.values, n=1000, method="inclusive")
        return cuts[min(999, max(1, round(1000 * share))) - 1]


@dataclass(frozen=True)
class Stability:
    """Agreements of circuits that should be one; ``of`` says which: bootstrap, halves, seeds, graph."""

    of: str
    pairs: tuple[Agreement, ...]

    def spread(self, name: str) -> Spread | None:
        """Of one number of the agreements, by its name; None where no pair has it."""
        values = tuple(value for pair in self.pairs if (value := getattr(pair, name)) is not None)
        return Spread(values) if values else None


# Finds the circuit on the prompts of these numbers; what was found before under this name is not found again.
Search = Callable[[str, Sequence[int]], Found]


def over_samples(search: Search, *, n_prompts: int, samples: int, seed: int) -> list[Found]:
    """The circuit on bootstrap samples of the prompts."""
    return [search(f"sample {number}", numbers) for number, numbers in enumerate(drawn(n_prompts, samples, seed=seed))]


def drawn(n_prompts: int, samples: int, *, seed: int) -> list[tuple[int, ...]]:
    """Bootstrap samples: as many numbers of prompts as there are, with repetition, in order."""
    generator = random.Random(seed)
    return [tuple(sorted(generator.choices(range(n_prompts), k=n_prompts))) for _ in range(samples)]


def over_halves(search: Search, *, n_prompts: int, splits: int, seed: int) -> list[tuple[Found, Found]]:
    """The circuit on each of two halves of the prompts, several times; of an odd number one prompt is left out."""
    found = []
    for number, (one, other) in enumerate(halves(n_prompts, splits, seed=seed)):
        found.append((search(f"half {number} a", one), search(f"half {number} b", other)))
    return found


def halves(n_prompts: int, splits: int, *, seed: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of disjoint halves of the prompts' numbers, drawn at random."""
    generator = random.Random(seed + 1)
    for _ in range(splits):
        order = generator.sample(range(n_prompts), n_prompts)
        size = n_prompts // 2
        yield tuple(sorted(order[:size])), tuple(sorted(order[size : 2 * size]))


def among(found: Sequence[Found]) -> tuple[Agreement, ...]:
    """Of all pairs."""
    return tuple(agreement(one, other) for one, other in combinations(found, 2))


def with_one(one: Found, found: Sequence[Found]) -> tuple[Agreement, ...]:
    """Of one circuit with each of the others."""
    return tuple(agreement(one, other) for other in found)


def strongest(found: Found, count: int) -> tuple[str, ...]:
    """The names of the nodes with the largest effects of either sign; of equals those that come first."""
    return tuple(sorted(found.nodes, key=lambda name: -abs(found.nodes[name]))[:count])
