"""Two circuits of one behaviour: what they share, what makes one of the other, and which keeps more."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import OUTPUT, NodeId, logit_token
from circuitcli.validation.scores import LEAST_RANGE, Runs, Score
from circuitcli.validation.stability import Found


def difference(
    part: Float[Tensor, " prompt"], other: Float[Tensor, " prompt"], runs: Runs, *, bootstrap: int, seed: int
) -> Score:
    """How much more of the behaviour the first keeps than the other, with its bootstrap interval over prompts.

    Both are metrics of each prompt; the same prompts are drawn for both, so that what they have in common cancels.
    """
    one, two = (replace(runs, circuit=metrics) for metrics in (part, other))
    return difference_of_two(one, two, "circuit", bootstrap=bootstrap, seed=seed)


def difference_of_two(
    one: Runs, other: Runs, part: Literal["circuit", "complement"], *, bootstrap: int, seed: int
) -> Score:
    """`difference` of circuits that are run through other coders each, so that each has an empty run of its own."""
    metrics = [getattr(runs, part) for runs in (one, other)]
    value = float(one.faithfulness(metrics[0]) - other.faithfulness(metrics[1]))
    count = len(one.clean)
    if count < 2 or bootstrap == 0:
        return Score(value, None, None)
    draws = torch.randint(count, (bootstrap, count), generator=torch.Generator().manual_seed(seed))
    shares = []
    for runs, values in zip((one, other), metrics, strict=True):
        spans = (runs.clean - runs.empty)[draws].mean(dim=1)
        if bool((spans.abs() < LEAST_RANGE).any()):
            return Score(value, None, None)
        shares.append((values - runs.empty)[draws].mean(dim=1) / spans)
    low, high = (shares[0] - shares[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, low, high)


@dataclass(frozen=True)
class Change:
    """A node or an edge that one graph has and the other has not; ``strength`` is its effect or weight."""

    action: Literal["add", "remove"]
    node: str | None
    edge: tuple[str, str] | None
    strength: float


def edits(one: Found, other: Found) -> tuple[Change, ...]:
    """What is to be removed from the first, and added to it, to make it the other: nodes, then edges, by hook point in
    the order of the model (of edges: that of their target), strongest first."""
    nodes = [Change(action, name, None, value) for action, name, value in _apart(one.nodes, other.nodes)]
    edges = [Change(action, None, ends, weight) for action, ends, weight in _apart(one.edges, other.edges)]
    return (
        *sorted(nodes, key=lambda change: (_place(change.node or ""), -abs(change.strength), change.node)),
        *sorted(edges, key=lambda change: (_place((change.edge or ("", ""))[1]), -abs(change.strength), change.edge)),
    )


def _apart(
    one: Mapping[Any, float], other: Mapping[Any, float]
) -> Iterator[tuple[Literal["add", "remove"], Any, float]]:
    for name in one.keys() - other.keys():
        yield "remove", name, one[name]
    for name in other.keys() - one.keys():
        yield "add", name, other[name]


def _place(name: str) -> tuple[bool, tuple[int, int]]:
    """The place of a node in the model; outputs last."""
    is_output = name == OUTPUT or logit_token(name) is not None
    return (True, (0, 0)) if is_output else (False, NodeId.parse(name).hook.order)


def anywhere(found: Found) -> Found:
    """The same without positions: effects and weights are summed over them."""
    nodes: dict[str, float] = {}
    edges: dict[tuple[str, str], float] = {}
    for name, effect in found.nodes.items():
        nodes[_unplaced(name)] = nodes.get(_unplaced(name), 0.0) + effect
    for (source, target), weight in found.edges.items():
        ends = _unplaced(source), _unplaced(target)
        edges[ends] = edges.get(ends, 0.0) + weight
    return Found(nodes, edges)


def _unplaced(name: str) -> str:
    return name if name == OUTPUT or logit_token(name) is not None else NodeId.parse(name).feature
