"""Faithfulness, completeness, minimality and the comparison with chance (Marks et al. 2024, arXiv:2403.19647).

Faithfulness is ``(m(C) - m(0)) / (m(M) - m(0))``: m(C) with only the circuit's nodes, m(0) with none, m(M) the clean
model; a ratio of means over prompts, not clamped. Completeness is the same for everything but the circuit; low is good.
Minimality is the least change of faithfulness when one node is taken out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.validation.circuits import Kept, circuit_metric, kept_nodes

LEAST_RANGE = 1e-6


@dataclass(frozen=True)
class Case:
    """One prompt to test on, with its baseline and the circuit's nodes as they are named in it."""

    subject: Subject
    baseline: Baseline
    nodes: tuple[NodeId, ...]


@dataclass(frozen=True)
class Score:
    """A ratio of means over prompts with the bounds of its 95 % interval, None for a single prompt."""

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


def measure(cases: Sequence[Case], *, policy: str, batch_size: int) -> Runs:
    """Run every prompt with the circuit, with its complement, with nothing."""
    rows = []
    for case in cases:
        kept = kept_nodes(case.subject, case.nodes)
        nothing = kept_nodes(case.subject, ())
        circuits = [chosen.with_errors(policy) for chosen in (nothing, kept, kept.complement())]
        values = circuit_metric(case.subject, case.baseline, circuits, batch_size=batch_size)
        rows.append([case.subject.metric_clean, *values.tolist()])
    table = torch.tensor(rows, dtype=torch.float64)
    return Runs(table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def ratio(part: Float[Tensor, " prompt"], runs: Runs, *, bootstrap: int, seed: int) -> Score:
    """``(mean part - mean empty) / (mean clean - mean empty)``, with its bootstrap interval over prompts.

    Raises InputError if the clean and the empty run hardly differ.
    """
    span = float((runs.clean - runs.empty).mean())
    if abs(span) < LEAST_RANGE:
        raise InputError(
            f"the metric is the same with and without all nodes (difference {span:.1e}), so nothing can be explained",
            hint="choose another prompt or target, more hook points, or another --baseline",
        )
    value = float((part - runs.empty).mean()) / span
    count = len(part)
    if count < 2 or bootstrap == 0:
        return Score(value, None, None)
    draws = torch.randint(count, (bootstrap, count), generator=torch.Generator().manual_seed(seed))
    ratios = (part - runs.empty)[draws].mean(dim=1) / (runs.clean - runs.empty)[draws].mean(dim=1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, low, high)


def minimality(cases: Sequence[Case], runs: Runs, *, policy: str, batch_size: int) -> tuple[float, str]:
    """The least ``|F(C) - F(C without v)|`` over the circuit's nodes v, and that node. Needs at least one node.

    Where errors are all kept or all removed, an error node is none that could be left out.
    """
    nodes = _counted(cases[0].nodes, policy)
    without = torch.zeros(len(nodes), dtype=torch.float64)
    for case in cases:
        circuits = [
            kept_nodes(case.subject, [other for other in case.nodes if other != node]).with_errors(policy)
            for node in nodes
        ]
        without += circuit_metric(case.subject, case.baseline, circuits, batch_size=batch_size).cpu().double()
    changes = (runs.circuit.mean() - without / len(cases)).abs() / (runs.clean - runs.empty).mean().abs()
    least = int(changes.argmin())
    return float(changes[least]), str(nodes[least])


def random_faithfulness(
    cases: Sequence[Case], runs: Runs, *, policy: str, samples: int, seed: int, batch_size: int
) -> Float[Tensor, " sample"]:
    """Faithfulness of random circuits with as many live nodes at each hook point as the circuit has."""
    generator = torch.Generator().manual_seed(seed)
    totals = torch.zeros(samples, dtype=torch.float64)
    for case in cases:
        circuits = [random_circuit(case, generator, policy=policy).with_errors(policy) for _ in range(samples)]
        totals += circuit_metric(case.subject, case.baseline, circuits, batch_size=batch_size).cpu().double()
    span = (runs.clean - runs.empty).mean()
    return (totals / len(cases) - runs.empty.mean()) / span


def _counted(nodes: Sequence[NodeId], policy: str) -> list[NodeId]:
    """The nodes that make a difference under an error policy; all of them if there are none but errors."""
    features = [node for node in nodes if not node.is_error]
    return list(nodes) if policy == "nodes" or not features else features


def random_circuit(case: Case, generator: torch.Generator, *, policy: str = "nodes") -> Kept:
    """As many nodes at each hook point, drawn from the active features and the errors of the clean run.

    A circuit of the last position alone is compared with others of the last position.
    """
    sizes: dict[HookPoint, int] = {}
    for node in _counted(case.nodes, policy):
        sizes[node.hook] = sizes.get(node.hook, 0) + 1
    positions = {node.position for node in case.nodes}
    drawn: list[NodeId] = []
    for hook, size in sizes.items():
        pool = _counted(live_nodes(case.subject, hook, has_positions=positions != {None}), policy)
        if positions == {case.subject.prompt.last}:
            pool = [node for node in pool if node.position == case.subject.prompt.last]
        order = torch.randperm(len(pool), generator=generator)[:size].tolist()
        drawn += [pool[index] for index in order]
    return kept_nodes(case.subject, drawn)


def live_nodes(subject: Subject, hook: HookPoint, *, has_positions: bool) -> list[NodeId]:
    """The active features and the errors of a clean run."""
    active = subject.coded[hook].codes[0] != 0
    if not has_positions:
        return [*(NodeId(hook, index) for index in active.any(dim=0).nonzero()[:, 0].tolist()), NodeId(hook, None)]
    first = subject.prompt.first
    features = [NodeId(hook, index, position + first) for position, index in active.nonzero().tolist()]
    return [*features, *(NodeId(hook, None, position + first) for position in range(subject.prompt.n_spliced))]
