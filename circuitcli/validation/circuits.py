"""Running the model with only a circuit's nodes: all others, at every spliced hook point, are at their baseline."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution import memory
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.memory import in_batches
from circuitcli.attribution.positions import where
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.saes.splice import Edit, splice


@dataclass(frozen=True)
class Kept:
    """Which nodes keep their own value in each prompt: features by what is read, errors by what is written."""

    features: Mapping[HookPoint, Bool[Tensor, "text position d_sae"]]
    errors: Mapping[HookPoint, Bool[Tensor, "text position"]]

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
    coders, device = subject.coders, subject.adapter.device
    # What is at the same positions in all prompts needs one row.
    nodes = tuple(nodes)
    n_texts = subject.n_texts if any(isinstance(node.position, str) for node in nodes) else 1
    shape = (n_texts, subject.n_spliced)
    features = {
        hook: torch.zeros(*shape, coder.d_sae, dtype=torch.bool, device=device) for hook, coder in coders.items()
    }
    errors = {hook: torch.zeros(*shape, dtype=torch.bool, device=device) for hook in coders.written}
    places: dict[int | str | None, Tensor] = {}
    for node in nodes:
        check_node(subject, node)
        if node.position not in places:
            places[node.position] = where(subject.prompts[:n_texts], node.position, device)
        rows = places[node.position]
        if node.index is None:
            errors[node.hook] |= rows
        else:
            features[node.hook][..., node.index] |= rows
    return Kept(features, errors)


def check_node(subject: Subject, node: NodeId) -> None:
    """Raise InputError for a node whose hook point, index or position this subject lacks."""
    coders = subject.coders
    if not (coders.writers(node.hook) if node.is_error else node.hook in coders):
        there = coders.written if node.is_error else tuple(coders)
        raise InputError(
            f"no SAE at {node.hook}, where the circuit has {node}",
            hint=f"there are SAEs at {' '.join(map(str, there))}",
        )
    if node.index is not None and node.index >= coders[node.hook].d_sae:
        raise InputError(
            f"{node.hook} has no feature {node.index}", hint=f"features are 0 to {coders[node.hook].d_sae - 1}"
        )
    where(subject.prompts[:1], node.position, subject.adapter.device)


def circuit_edit(
    baseline: Baseline,
    *,
    keeps_code: Callable[[HookPoint], Bool[Tensor, "row position d_sae"]],
    keeps_error: Callable[[HookPoint], Bool[Tensor, "row position"]],
    texts: Tensor,
) -> Edit:
    """The edit that takes all to its baseline but what is kept."""

    def of_rows(absent: Tensor) -> Tensor:
        return absent if len(absent) == 1 else absent[texts]

    def codes(hook: HookPoint, values: Tensor) -> Tensor:
        return (of_rows(baseline.codes[hook]) - values).masked_fill(keeps_code(hook), 0.0)

    def error(hook: HookPoint, values: Tensor) -> Tensor:
        return (of_rows(baseline.errors[hook]) - values).masked_fill(keeps_error(hook)[..., None], 0.0)

    return Edit(codes, error)


def circuit_metric(
    subject: Subject, baseline: Baseline, circuits: Iterable[Kept], *, batch_size: int
) -> Float[Tensor, "circuit text"]:
    """The metric with only each circuit's nodes; of the circuits a batch is in memory at once."""
    waiting = iter(circuits)
    values: list[Tensor] = []
    while batch := list(islice(waiting, _at_once(subject, batch_size=batch_size))):
        values += in_batches(batch, partial(_metric_of, subject, baseline), size=len(batch))
    return torch.cat(values)


def _at_once(subject: Subject, *, batch_size: int) -> int:
    """Circuits in one pass, each on all texts."""
    return max(1, rows_at_once(subject, batch_size=batch_size) // subject.n_texts)


def _metric_of(subject: Subject, baseline: Baseline, circuits: Sequence[Kept]) -> Float[Tensor, "circuit text"]:
    n_texts = subject.n_texts
    texts = torch.arange(n_texts, device=subject.adapter.device).repeat(len(circuits))

    def rows(masks: Sequence[Tensor]) -> Tensor:
        """One row for each circuit and text."""
        return torch.cat([mask.expand(n_texts, *mask.shape[1:]) for mask in masks])

    edit = circuit_edit(
        baseline,
        keeps_code=lambda hook: rows([kept.features[hook] for kept in circuits]),
        keeps_error=lambda hook: rows([kept.errors[hook] for kept in circuits]),
        texts=texts,
    )
    with torch.no_grad():
        metric = subject.metric_of(splice(subject.coders, edit, first=subject.first), texts=texts)
    return metric.unflatten(0, (len(circuits), n_texts))


def rows_at_once(subject: Subject, *, batch_size: int) -> int:
    """How many rows run in one pass: codes of all coders are there at once, and so are their changes."""
    codes = 2 * subject.n_spliced * sum(coder.d_sae for coder in subject.coders.values())
    return memory.rows_at_once(subject, 0, backward=False, codes=codes, at_most=batch_size)
