"""Faithfulness, completeness and minimality (Marks et al. 2024, arXiv:2403.19647).

Faithfulness is ``(m(C) - m(0)) / (m(M) - m(0))``: m(C) with only the circuit's nodes, m(0) with none, m(M) the clean
model; a ratio of means over prompts, not clamped; high is good. Completeness is the same for everything but the
circuit: what is left without it; low is good. Minimality is the least change of faithfulness when one node is taken
out; high is good.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import LAST
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.errors import InputError
from circuitcli.hookpoints import NodeId, without_numbers
from circuitcli.progress import task
from circuitcli.runs import digest
from circuitcli.validation.circuits import Kept, circuit_metric, kept_nodes, rows_at_once
from circuitcli.validation.edges import Edge, edge_metric

LEAST_RANGE = 1e-6

# Gives the numbers of a step: kept ones of an earlier, killed run, or those that the function makes.
Keeper = Callable[[str, Callable[[], list[float]]], list[float]]


def anew(step: str, make: Callable[[], list[float]]) -> list[float]:
    """The keeper that keeps nothing."""
    return make()


def steps_named(name: str, keep: Keeper) -> Keeper:
    """The keeper that keeps steps of one kind apart from others' of the same name."""
    return lambda step, make: keep(f"{name}: {step}", make)


@dataclass(frozen=True)
class Case:
    """Prompts of one length to test on, with their baseline and the circuit's nodes as they are named in them; ``name``
    tells them from others."""

    subject: Subject
    baseline: Baseline
    nodes: tuple[NodeId, ...]
    name: str = "prompt 0"


class PanelCases(Sequence[Case]):
    """A panel's batches as cases, each run when it is needed and kept as long as there is room."""

    def __init__(self, panel: Panel, nodes: Sequence[NodeId]) -> None:
        self.panel, self.nodes = panel, tuple(nodes)

    def __len__(self) -> int:
        return len(self.panel.batches)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Case]": ...
    def __getitem__(self, index: int | slice) -> "Case | Sequence[Case]":
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        numbers = self.panel.batches[range(len(self))[index]]
        subject, baseline = self.panel.subject(range(len(self))[index])
        return Case(subject, baseline, self.nodes, _named(numbers))


def at_spans(nodes: Iterable[NodeId]) -> bool:
    """Whether some node stands at a named span, which prompts must then have."""
    return any(isinstance(node.position, str) and node.position != LAST for node in nodes)


def on_other_prompts(
    nodes: Sequence[NodeId], prompts: Sequence[Prompt], *, n_positions: int | None
) -> tuple[NodeId, ...]:
    """A circuit's nodes as they are tested on other prompts than those that it was found on: numbers of positions stay
    where it was found on several prompts of this many tokens, and all of these are as long; else a node counts at all
    positions. Names of spans stay."""
    if n_positions is not None and all(len(prompt.ids) == n_positions for prompt in prompts):
        return tuple(nodes)
    return without_numbers(nodes)


def edges_on_other_prompts(
    edges: Iterable[Edge], prompts: Sequence[Prompt], *, n_positions: int | None
) -> tuple[Edge, ...]:
    """A circuit's edges likewise."""

    def named(node: NodeId) -> NodeId:
        return on_other_prompts([node], prompts, n_positions=n_positions)[0]

    return tuple(dict.fromkeys((named(u), None if d is None else named(d)) for u, d in edges))


def _named(numbers: Sequence[int]) -> str:
    """Prompts by their numbers, whatever batches they are in."""
    if len(numbers) == 1:
        return f"prompt {numbers[0]}"
    spans = f"{numbers[0]} to {numbers[-1]}"
    return f"prompts {spans}" if numbers[-1] - numbers[0] == len(numbers) - 1 else f"prompts {spans}: {digest(numbers)}"


@dataclass(frozen=True)
class Score:
    """A mean over prompts, or a ratio of means, with the bounds of its 95 % interval, None for a single prompt."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Runs:
    """Metrics of each prompt under one error policy."""

    clean: Float[Tensor, " prompt"]
    empty: Float[Tensor, " prompt"]
    circuit: Float[Tensor, " prompt"]
    complement: Float[Tensor, " prompt"]

    @property
    def span(self) -> float:
        """What there is to explain: the clean metric minus that without any node, mean over prompts."""
        return float((self.clean - self.empty).mean())

    @property
    def has_range(self) -> bool:
        """Whether taking all nodes away changes the metric at all."""
        return abs(self.span) >= LEAST_RANGE

    def faithfulness(self, metrics: Float[Tensor, "*circuit prompt"]) -> Float[Tensor, "*circuit"]:
        """Of circuits with these metrics of each prompt."""
        return (metrics - self.empty).mean(dim=-1) / self.span


def measure(cases: Sequence[Case], *, policy: str, batch_size: int, keep: Keeper = anew) -> Runs:
    """Run every prompt with the circuit, with its complement, with nothing. Raises InputError as `kept_metric` does."""
    tables = []
    for case in cases:
        check_finite(case.subject.metric_clean.tolist(), f"the metric of {case.name}")
        kept = kept_nodes(case.subject, case.nodes)
        circuits = [chosen.with_errors(policy) for chosen in (kept_nodes(case.subject, ()), kept, kept.complement())]
        values = kept_metric(case, circuits, batch_size, keep, f"{policy} errors, {case.name}")
        tables.append(torch.cat([case.subject.metric_clean.cpu().double()[None], values]))
    clean, empty, circuit, complement = torch.cat(tables, dim=1)
    return Runs(clean, empty, circuit, complement)


class Resamples:
    """Bootstrap samples of the prompts, the same for all that is compared, so that what it has in common cancels."""

    def __init__(self, n_prompts: int, *, bootstrap: int, seed: int) -> None:
        self.n_prompts, self.bootstrap = n_prompts, bootstrap if n_prompts > 1 else 0
        draws = torch.randint(n_prompts, (self.bootstrap, n_prompts), generator=torch.Generator().manual_seed(seed))
        once = torch.tensor(1 / n_prompts, dtype=torch.float64).expand(draws.shape)
        # How much each prompt counts in each sample.
        self._weights = torch.zeros(draws.shape, dtype=torch.float64).scatter_add_(1, draws, once)

    def faithfulness(
        self, metrics: Float[Tensor, "*circuit prompt"], runs: Runs
    ) -> Float[Tensor, "*circuit sample"] | None:
        """Of circuits with these metrics of each prompt, on each sample; None where that has no bounds.

        Prompts of opposite sign can leave a sample nothing to explain; an interval over what is left would be too
        narrow.
        """
        spans = self._weights @ (runs.clean - runs.empty)
        if not self.bootstrap or bool((spans.abs() < LEAST_RANGE).any()):
            return None
        return (metrics - runs.empty) @ self._weights.T / spans

    @staticmethod
    def score(value: float, samples: Float[Tensor, " sample"] | None) -> Score:
        """A value with the interval that 95 % of the samples are in."""
        if samples is None:
            return Score(value, None, None)
        low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Score(value, low, high)


def bounded(of: Float[Tensor, " prompt"], *, bootstrap: int, seed: int) -> Score:
    """The mean over prompts, with its bootstrap interval."""
    count, value = len(of), float(of.mean())
    if count < 2 or bootstrap == 0:
        return Score(value, None, None)
    draws = torch.randint(count, (bootstrap, count), generator=torch.Generator().manual_seed(seed))
    return Resamples.score(value, of[draws].mean(dim=1))


def ratio(part: Float[Tensor, " prompt"], runs: Runs, *, bootstrap: int, seed: int) -> Score:
    """``(mean part - mean empty) / (mean clean - mean empty)``, with its bootstrap interval over prompts.

    Raises InputError if the clean and the empty run hardly differ.
    """
    if not runs.has_range:
        raise nothing_to_explain(runs)
    resamples = Resamples(len(part), bootstrap=bootstrap, seed=seed)
    return resamples.score(float(runs.faithfulness(part)), resamples.faithfulness(part, runs))


def nothing_to_explain(runs: Runs) -> InputError:
    """The error for nodes that change nothing."""
    return InputError(
        f"the metric is the same with and without all nodes (difference {runs.span:.1e}), so nothing can be explained",
        hint="choose another prompt or target, more hook points, or another --baseline",
    )


def minimality(
    cases: Sequence[Case],
    runs: Runs,
    *,
    policy: str,
    batch_size: int,
    keep: Keeper = anew,
    bootstrap: int = 0,
    seed: int = 0,
) -> tuple[Score, str]:
    """The least ``|F(C) - F(C without v)|`` over the circuit's nodes v, and that node. Needs at least one node.

    The interval is that of this node's change; where its sign is open it begins at 0. Where errors are all kept or all
    removed, an error node is none that could be left out.
    """
    nodes = counted(cases[0].nodes, policy)
    circuits = [tuple(other for other in cases[0].nodes if other != node) for node in nodes]
    without = metrics_of(cases, circuits, policy=policy, batch_size=batch_size, keep=keep, name="circuit less a node")
    changes = (runs.faithfulness(runs.circuit) - runs.faithfulness(without)).abs()
    least = int(changes.argmin())
    resamples = Resamples(len(runs.clean), bootstrap=bootstrap, seed=seed)
    both = resamples.faithfulness(torch.stack([runs.circuit, without[least]]), runs)
    change = resamples.score(float(changes[least]), None if both is None else both[0] - both[1])
    return Score(change.value, *_of_size(change)), str(nodes[least])


def _of_size(change: Score) -> tuple[float | None, float | None]:
    """Bounds of a change's size, for those of the change."""
    if change.low is None or change.high is None:
        return None, None
    sizes = sorted((abs(change.low), abs(change.high)))
    return (0.0 if change.low <= 0 <= change.high else sizes[0]), sizes[1]


def metrics_of(
    cases: Sequence[Case],
    circuits: Sequence[tuple[NodeId, ...]],
    *,
    policy: str,
    batch_size: int,
    keep: Keeper = anew,
    name: str,
) -> Float[Tensor, "circuit prompt"]:
    """The metric of each prompt with only the nodes of each circuit. What was run stays with the keeper, by ``name``
    and the circuits' numbers."""
    columns = []
    with task(name, total=len(cases) * len(circuits), unit="passes") as advance:
        for case in cases:
            step = f"{name}, {policy} errors, {case.name}"
            rows = []
            for begin, end in _batches(len(circuits), rows_at_once(case.subject, batch_size=batch_size)):
                masks = (kept_nodes(case.subject, nodes).with_errors(policy) for nodes in circuits[begin:end])
                rows.append(kept_metric(case, masks, batch_size, keep, f"{step}, {begin} to {end}"))
                advance(end - begin)
            columns.append(torch.cat(rows))
    return torch.cat(columns, dim=1)


def edge_metrics(
    cases: Sequence[Case],
    edges: Sequence[Edge],
    *,
    policy: str,
    batch_size: int,
    keep: Keeper = anew,
    name: str = "edges alone",
) -> Float[Tensor, " prompt"]:
    """The metric of each prompt with these edges alone between the circuit's nodes. Raises as `kept_metric` does."""
    columns = []
    with task(name, total=len(cases), unit="batches") as advance:
        for case in cases:
            step = f"{name}, {policy} errors, {case.name}"

            def made(case: Case = case, step: str = step) -> list[float]:
                subject, baseline = case.subject, case.baseline
                metrics = edge_metric(subject, baseline, case.nodes, edges, policy=policy, batch_size=batch_size)
                return _finite(metrics, step)

            columns.append(torch.tensor(keep(step, made), dtype=torch.float64))
            advance()
    return torch.cat(columns)


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + size, count)) for begin in range(0, count, size))


def kept_metric(
    case: Case, circuits: Iterable[Kept], batch_size: int, keep: Keeper, step: str
) -> Float[Tensor, "circuit prompt"]:
    """The metric of each prompt with only each circuit's nodes, kept under the name of the step.

    Raises InputError, and keeps nothing, if it is not finite.
    """

    def made() -> list[float]:
        metrics = circuit_metric(case.subject, case.baseline, circuits, batch_size=batch_size)
        return _finite(metrics, step)

    return torch.tensor(keep(step, made), dtype=torch.float64).unflatten(0, (-1, case.subject.n_texts))


def _finite(metrics: Tensor, step: str) -> list[float]:
    values: list[float] = metrics.cpu().double().flatten().tolist()
    check_finite(values, f"the metric with {step}")
    return values


def counted(nodes: Sequence[NodeId], policy: str) -> list[NodeId]:
    """The nodes that make a difference under an error policy; all of them if there are none but errors."""
    features = [node for node in nodes if not node.is_error]
    return list(nodes) if policy == "nodes" or not features else features
