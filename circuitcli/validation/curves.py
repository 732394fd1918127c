"""Faithfulness against the number of nodes or edges, and the areas by which rankings are compared (Mueller et al. 2025,
arXiv:2504.13151, MIB).

CMD, the area between a curve and 1, says how far circuits behave as the model does: 0 is best. CPR, the area below it,
says how much they keep; it has no upper bound where parts of a circuit overshoot, so the largest faithfulness is told
beside it, and what CPR is of a curve that is 1 everywhere. Both by the trapezoid rule over the share of nodes, and over
its natural logarithm, in which small circuits count as much as large ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import NodeId
from circuitcli.progress import task
from circuitcli.records import CurveRecord
from circuitcli.validation.circuits import Kept, kept_nodes
from circuitcli.validation.edges import Edge
from circuitcli.validation.ranking import Ranking
from circuitcli.validation.scores import Case, Keeper, Resamples, Runs, Score, edge_metrics, kept_metric

# MIB's ten sizes, as shares of all there is.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Circuits by their number of nodes in a subject.
CircuitOf = Callable[[Subject, int], Kept]


def sizes(total: int) -> list[int]:
    """How many of so many nodes or edges the circuits of a curve have, the smallest first; at least one."""
    return sorted({max(1, round(share * total)) for share in SHARES}) if total else []


@dataclass(frozen=True)
class Area:
    """The areas below a curve and between it and 1, with their intervals; what the first is of a curve that is 1."""

    cpr: Score
    cmd: Score
    best: float


@dataclass(frozen=True)
class Curve:
    """Faithfulness of circuits of several sizes; ``of`` nodes or edges, ranked in the ``graph`` or among ``all``."""

    of: Literal["nodes", "edges"]
    ranked: Literal["graph", "all"]
    counts: tuple[int, ...]
    total: int
    points: tuple[Score, ...]
    linear: Area
    logarithmic: Area

    @property
    def shares(self) -> tuple[float, ...]:
        """What share of all there is each circuit has."""
        return tuple(count / self.total for count in self.counts)

    def record(self, about: Mapping[str, Any]) -> CurveRecord:
        """As a record."""
        told = {name: about[name] for name in _ABOUT if name in about}
        areas = {"": self.linear, "_log": self.logarithmic}
        numbers = {
            f"{name}{suffix}{end}": value
            for suffix, area in areas.items()
            for name, score in (("cmd", area.cmd), ("cpr", area.cpr))
            for end, value in (("", score.value), ("_low", score.low), ("_high", score.high))
        }
        best = {f"best_cpr{suffix}": area.best for suffix, area in areas.items()}
        bounds: dict[str, Any] = {}
        if all(point.low is not None for point in self.points):
            bounds = {"low": [point.low for point in self.points], "high": [point.high for point in self.points]}
        values = [point.value for point in self.points]
        largest = max(range(len(values)), key=values.__getitem__)
        return CurveRecord(
            of=self.of,
            ranked=self.ranked,
            counts=self.counts,
            total=self.total,
            values=tuple(values),
            largest=values[largest],
            largest_count=self.counts[largest],
            **bounds,
            **numbers,
            **best,
            **told,
        )


_ABOUT = ("graph", "graph_digest", "ablation", "errors", "n_prompts", "held_out")


def curve(
    metrics: Float[Tensor, "size prompt"],
    runs: Runs,
    resamples: Resamples,
    *,
    of: Literal["nodes", "edges"],
    ranked: Literal["graph", "all"],
    counts: Sequence[int],
    total: int,
) -> Curve:
    """The curve of circuits with these metrics of each prompt; at least two sizes."""
    values, samples = runs.faithfulness(metrics), resamples.faithfulness(metrics, runs)
    points = [
        resamples.score(float(value), None if samples is None else samples[number])
        for number, value in enumerate(values)
    ]
    shares = torch.tensor(counts, dtype=torch.float64) / total
    areas = [_area(x, values, samples, resamples) for x in (shares, shares.log())]
    return Curve(of, ranked, tuple(counts), total, tuple(points), *areas)


def _area(x: Tensor, values: Tensor, samples: Tensor | None, resamples: Resamples) -> Area:
    def score(change: Callable[[Tensor], Tensor]) -> Score:
        drawn = None if samples is None else torch.trapezoid(change(samples), x, dim=0)
        return resamples.score(float(torch.trapezoid(change(values), x)), drawn)

    return Area(score(lambda f: f), score(lambda f: (1 - f).abs()), float(x[-1] - x[0]))


def strongest_of(nodes: Sequence[NodeId]) -> CircuitOf:
    """The circuits of the first so many of a graph's nodes."""
    return lambda subject, count: kept_nodes(subject, nodes[:count])


def strongest_of_all(ranking: Ranking) -> CircuitOf:
    """The circuits of the strongest so many of all nodes; with all of them, also those that have no effect."""

    def circuit(subject: Subject, count: int) -> Kept:
        return ranking.kept(subject, count) if count < len(ranking) else kept_nodes(subject, ()).complement()

    return circuit


def node_metrics(
    cases: Sequence[Case],
    circuit_of: CircuitOf,
    counts: Sequence[int],
    *,
    name: str,
    policy: str,
    batch_size: int,
    keep: Keeper,
) -> Float[Tensor, "size prompt"]:
    """The metric of each prompt with circuits of so many nodes."""
    columns = []
    with task(name, total=len(cases), unit="batches") as advance:
        for case in cases:
            circuits = (circuit_of(case.subject, count).with_errors(policy) for count in counts)
            columns.append(kept_metric(case, circuits, batch_size, keep, f"{name}, {policy} errors, {case.name}"))
            advance()
    return torch.cat(columns, dim=1)


def edges_metrics(
    cases: Sequence[Case],
    edges: Sequence[Edge],
    counts: Sequence[int],
    *,
    policy: str,
    batch_size: int,
    keep: Keeper,
) -> Float[Tensor, "size prompt"]:
    """The metric of each prompt with the first so many edges alone."""
    options: dict[str, Any] = {"policy": policy, "batch_size": batch_size, "keep": keep}
    return torch.stack([edge_metrics(cases, edges[:count], name=f"{count} edges alone", **options) for count in counts])
