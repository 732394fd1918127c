"""How active nodes are in the prompts of a panel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.baselines import differs
from circuitcli.attribution.edges import Target
from circuitcli.attribution.panel import Panel, wide
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import strongest


@dataclass(frozen=True)
class Activity:
    """Activation where it is furthest from zero, the mean over prompts, and the share of prompts in which it is not
    zero, None for one prompt; all None for errors."""

    activation: float | None = None
    active: float | None = None


def activity(panel: Panel, hook: HookPoint, targets: Sequence[Target]) -> list[Activity]:
    """Of nodes of one hook point."""
    features = [number for number, target in enumerate(targets) if target.index is not None]
    found = [Activity()] * len(targets)
    if not features:
        return found
    chosen = [targets[number] for number in features]
    values = torch.cat([_strongest(panel, batch, hook, chosen) for batch in range(len(panel.batches))])
    means, counts = values.mean(dim=0).tolist(), (values != 0).sum(dim=0).tolist()
    for number, mean, count in zip(features, means, counts, strict=True):
        found[number] = Activity(mean, count / panel.n_prompts if panel.n_prompts > 1 else None)
    return found


def _strongest(panel: Panel, batch: int, hook: HookPoint, features: Sequence[Target]) -> Float[Tensor, "text feature"]:
    subject, _ = panel.subject(batch)
    groups, indices = [target.group for target in features], [target.index for target in features]
    codes = subject.codes[hook]
    if panel.positions.kind == "all":
        return wide(codes[:, groups, indices])
    if panel.positions.kind == "last":
        return wide(codes[:, -1, indices])
    masks = panel.masks(subject)[:, groups]  # (text, feature, spliced)
    return wide(strongest((codes[:, :, indices] * masks.transpose(1, 2)).transpose(0, 1)))


def differing(panel: Panel, batch: int, hook: HookPoint) -> Bool[Tensor, "text group d_sae"]:
    """Which features differ from their baseline somewhere in a group of positions, in each prompt of a batch."""
    subject, baseline = panel.subject(batch)
    different = differs(subject.codes[hook], baseline.codes[hook])  # (text, spliced, d_sae)
    if panel.positions.kind == "all":
        return different
    if panel.positions.kind == "last":
        return different[:, -1:]
    masks = panel.masks(subject)
    return torch.stack([(different & masks[:, group, :, None]).any(dim=1) for group in range(masks.shape[1])], dim=1)
