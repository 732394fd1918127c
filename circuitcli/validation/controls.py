"""What a circuit must beat: random circuits of its own shape, and everything at its own places.

A place is a hook point at a position (or over all positions), and a kind, features or errors. A random circuit has as
many nodes at each place as the circuit, drawn without replacement from the nodes there that differ from their baseline
in some prompt, and the circuit's own: a node at its baseline changes nothing, whoever keeps it.

Where baselines are means, nearly all of these are features that are inactive and hardly differ. So the harder control
draws, for active features of the circuit, from the active ones alone.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.baselines import differs
from circuitcli.attribution.positions import where
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.validation.circuits import Kept, kept_nodes
from circuitcli.validation.scores import Case, Keeper, Runs, anew, counted, kept_metric, metrics_of

Kind = Literal["feature", "error", "active", "inactive"]


@dataclass(frozen=True)
class Locus:
    """Where nodes are exchangeable: a hook point, a position (None: all of them together), and what is there."""

    hook: HookPoint
    position: int | str | None
    kind: Kind


@dataclass(frozen=True)
class Chance:
    """Faithfulness of random circuits beside that of the circuit, and how much of the circuit they had.

    metrics: of each draw on each prompt. overlap: mean share of the circuit's nodes that a draw has too. n_pool: nodes
    from which was drawn.
    """

    values: Float[Tensor, " sample"]
    metrics: Float[Tensor, "sample prompt"]
    overlap: float
    overlap_features: float | None
    n_nodes: int
    n_pool: int

    def rank(self, faithfulness: float) -> int:
        """The circuit's place among itself and the draws, the best first; draws that are as good stand before it."""
        return 1 + int((self.values >= faithfulness).sum())

    def quantile(self, share: float) -> float:
        """Of the draws' faithfulness."""
        return float(self.values.quantile(share))


def random_faithfulness(
    cases: Sequence[Case],
    runs: Runs,
    *,
    policy: str,
    samples: int,
    seed: int,
    batch_size: int,
    by_activity: bool = False,
    keep: Keeper = anew,
) -> Chance:
    """Faithfulness of random circuits that have as many nodes as the circuit at each of its places.

    Each is one circuit, run on all prompts. Where errors are all kept or all removed only features are drawn.
    by_activity: active features are drawn for active ones, and inactive ones for inactive ones.
    """
    circuit = counted(cases[0].nodes, policy)
    pools = pools_of(cases, circuit, by_activity=by_activity)
    draws = random_circuits({pool.locus: (len(pool.own), pool.indices) for pool in pools}, samples=samples, seed=seed)
    name = "random circuits, active ones" if by_activity else "random circuits"
    metrics = metrics_of(cases, draws, policy=policy, batch_size=batch_size, keep=keep, name=name)
    own, features = set(circuit), {node for node in circuit if not node.is_error}
    return Chance(
        values=runs.faithfulness(metrics),
        metrics=metrics,
        overlap=_overlap(draws, own),
        overlap_features=_overlap(draws, features) if features else None,
        n_nodes=len(own),
        n_pool=sum(len(pool.indices) for pool in pools),
    )


def random_circuits(
    pools: Mapping[Locus, tuple[int, Sequence[int | None]]], *, samples: int, seed: int
) -> list[tuple[NodeId, ...]]:
    """Circuits with a number of nodes at each place, drawn from the indices there."""
    generator = random.Random(seed)
    return [
        tuple(
            NodeId(locus.hook, index, locus.position)
            for locus, (size, indices) in pools.items()
            for index in generator.sample(indices, size)
        )
        for _ in range(samples)
    ]


@dataclass(frozen=True)
class Pool:
    """The circuit's own nodes at a place, and the indices of all that could stand for them; of errors there is one."""

    locus: Locus
    own: tuple[NodeId, ...]
    indices: Sequence[int | None]


def pools_of(cases: Sequence[Case], circuit: Iterable[NodeId], *, by_activity: bool) -> list[Pool]:
    """One for each place of the circuit."""
    found: dict[Locus, list[NodeId]] = {}
    active: dict[tuple[HookPoint, int | str | None], Tensor] = {}
    for node in dict.fromkeys(circuit):
        kind: Kind = "error" if node.is_error else "feature"
        if by_activity and kind == "feature":
            place = (node.hook, node.position)
            if place not in active:
                active[place] = _active(cases, *place)
            kind = "active" if bool(active[place][node.index]) else "inactive"
        found.setdefault(Locus(node.hook, node.position, kind), []).append(node)
    return [Pool(locus, tuple(own), _indices(cases, locus, own)) for locus, own in found.items()]


def _indices(cases: Sequence[Case], locus: Locus, own: Iterable[NodeId] = ()) -> list[int | None]:
    """Of the nodes at a place that differ from their baseline in some prompt, and of the circuit's own, in order."""
    if locus.kind == "error":
        return [None]
    found = _anywhere(cases, locus.hook, locus.position, to_baseline=True)
    if locus.kind != "feature":
        active = _active(cases, locus.hook, locus.position)
        found &= active if locus.kind == "active" else ~active
    for node in own:
        found[node.index] = True
    return list(found.nonzero()[:, 0].tolist())


def _active(cases: Sequence[Case], hook: HookPoint, position: int | str | None) -> Bool[Tensor, " d_sae"]:
    return _anywhere(cases, hook, position, to_baseline=False)


def _anywhere(
    cases: Sequence[Case], hook: HookPoint, position: int | str | None, *, to_baseline: bool
) -> Bool[Tensor, " d_sae"]:
    """Which features differ, in some prompt, from their baseline or from zero."""
    found = []
    for case in cases:
        subject = case.subject
        if to_baseline:
            different = differs(subject.codes[hook], case.baseline.codes[hook])
        else:
            different = subject.codes[hook] != 0
        rows = where(subject.prompts, position, different.device)[..., None]
        found.append((different & rows).flatten(0, 1).any(dim=0).cpu())
    return torch.stack(found).any(dim=0)


@dataclass(frozen=True)
class Everything:
    """The metric of each prompt with all nodes at the circuit's own hook points and positions, and how many differ."""

    metrics: Float[Tensor, " prompt"]
    n_nodes: int


def everything_there(cases: Sequence[Case], *, policy: str, batch_size: int, keep: Keeper = anew) -> Everything:
    """Run every prompt with all nodes at the hook points and positions of the circuit's nodes, and no others."""
    circuit = counted(cases[0].nodes, policy)
    places = dict.fromkeys((node.hook, node.position) for node in circuit)
    metrics = []
    for case in cases:
        whole = _filled(case, places).with_errors(policy)
        step = f"everything there, {policy} errors, {case.name}"
        metrics.append(kept_metric(case, [whole], batch_size, keep, step)[0])
    coders = cases[0].subject.coders
    n_features = sum(
        len(_indices(cases, Locus(hook, position, "feature"))) for hook, position in places if hook in coders
    )
    n_errors = sum(bool(coders.writers(hook)) for hook, _ in places) if policy == "nodes" else 0
    return Everything(torch.cat(metrics), n_features + n_errors)


def _filled(case: Case, places: Iterable[tuple[HookPoint, int | str | None]]) -> Kept:
    """All nodes of these places."""
    subject = case.subject
    kept = kept_nodes(subject, ())
    features = {hook: mask.repeat(subject.n_texts, 1, 1) for hook, mask in kept.features.items()}
    errors = {hook: mask.repeat(subject.n_texts, 1) for hook, mask in kept.errors.items()}
    for hook, position in places:
        rows = where(subject.prompts, position, subject.adapter.device)
        if hook in features:
            features[hook] |= rows[..., None]
        if hook in errors:
            errors[hook] |= rows
    return Kept(features, errors)


def _overlap(draws: Sequence[tuple[NodeId, ...]], own: set[NodeId]) -> float:
    shared = sum(len(own.intersection(draw)) for draw in draws)
    return shared / (len(own) * len(draws)) if own and draws else 0.0
