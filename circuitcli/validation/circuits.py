"""Running the model with only a circuit's nodes: all others, at every spliced hook point, are at their baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.saes.base import Coded
from circuitcli.saes.splice import Change, splice


@dataclass(frozen=True)
class Kept:
    """Which nodes of each hook point keep their own value; one row for all positions, or one for each."""

    features: Mapping[HookPoint, Bool[Tensor, "rows d_sae"]]
    errors: Mapping[HookPoint, Bool[Tensor, " rows"]]

    def complement(self) -> "Kept":
        """Everything else."""
        return Kept(
            {hook: ~mask for hook, mask in self.features.items()}, {hook: ~mask for hook, mask in self.errors.items()}
        )

    def with_errors(self, policy: str) -> "Kept":
        """Under an error policy: ``nodes`` keeps an error if it is a node, ``kept`` all, ``removed`` none."""
        if policy == "nodes":
            return self
        fill = torch.ones_like if policy == "kept" else torch.zeros_like
        return Kept(self.features, {hook: fill(mask) for hook, mask in self.errors.items()})


def kept_nodes(subject: Subject, nodes: Iterable[NodeId]) -> Kept:
    """The masks of a set of nodes. Raises InputError for a node that is not in this subject."""
    rows, first = subject.prompt.n_spliced, subject.prompt.first
    device = subject.adapter.device
    features = {
        hook: torch.zeros(rows, sae.d_sae, dtype=torch.bool, device=device) for hook, sae in subject.saes.items()
    }
    errors = {hook: torch.zeros(rows, dtype=torch.bool, device=device) for hook in subject.saes}
    for node in nodes:
        check_node(subject, node)
        where = slice(None) if node.number is None else node.number - first
        if node.index is None:
            errors[node.hook][where] = True
        else:
            features[node.hook][where, node.index] = True
    return Kept(features, errors)


def check_node(subject: Subject, node: NodeId) -> None:
    """Raise InputError for a node whose hook point, index or position this subject lacks."""
    if node.hook not in subject.saes:
        there = " ".join(str(hook) for hook in subject.hooks)
        raise InputError(f"no SAE at {node.hook}, where the circuit has {node}", hint=f"there are SAEs at {there}")
    d_sae = subject.saes[node.hook].d_sae
    if node.index is not None and node.index >= d_sae:
        raise InputError(f"{node.hook} has no feature {node.index}", hint=f"features are 0 to {d_sae - 1}")
    last = subject.prompt.last
    if node.number is not None and not subject.prompt.first <= node.number <= last:
        raise InputError(f"{node} is at a position that the prompt lacks", hint=f"the prompt ends at position {last}")


def circuit_logits(
    subject: Subject, baseline: Baseline, circuits: Sequence[Kept]
) -> Float[Tensor, "circuit position vocab"]:
    """Logits of the model with only each circuit's nodes."""
    features = {hook: torch.stack([kept.features[hook] for kept in circuits]) for hook in subject.hooks}
    errors = {hook: torch.stack([kept.errors[hook] for kept in circuits]) for hook in subject.hooks}

    def edit(hook: HookPoint, coded: Coded) -> Change:
        absent = baseline[hook]
        return Change(
            (absent.codes - coded.codes).masked_fill(features[hook], 0.0),
            (absent.error - coded.error).masked_fill(errors[hook][..., None], 0.0),
        )

    with torch.no_grad():
        return subject.logits(splice(subject.saes, edit, first=subject.prompt.first), rows=len(circuits))


def circuit_metric(
    subject: Subject, baseline: Baseline, circuits: Iterable[Kept], *, batch_size: int
) -> Float[Tensor, " circuit"]:
    """The metric with only each circuit's nodes; of the circuits a batch is in memory at once."""
    rows, waiting = rows_at_once(subject, batch_size=batch_size), iter(circuits)
    values = []
    while batch := list(islice(waiting, rows)):
        values.append(subject.metric.value(circuit_logits(subject, baseline, batch)))
    return torch.cat(values)


def rows_at_once(subject: Subject, *, batch_size: int) -> int:
    """How many circuits run in one pass: their masks take a byte for each feature and position."""
    widest = max(sae.d_sae for sae in subject.saes.values())
    return max(1, min(batch_size, 2**26 // (subject.prompt.n_spliced * widest)))
