"""Edges between what is kept at two hook points, one behind the other: how much later features change where one
earlier feature is taken from elsewhere too."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.search.patching import MORE, Layer, Place
from circuitcli.hookpoints import HookPoint

# Numbers of later codes that are in memory at once.
_AT_ONCE = 2**26


@dataclass(frozen=True)
class Link:
    """Places of an earlier and a later hook point. weight: by how much the later feature is larger, on average, with
    the earlier one; importance: how much more it is off without it, as a share of what it is at most."""

    source: Place
    target: Place
    weight: float
    importance: float


def links(layer: Layer, sources: Sequence[Place], other: HookPoint, targets: Sequence[Place]) -> list[Link]:
    """All that could be, strictly forward: a later position is not seen from an earlier one."""
    if not sources or not targets:
        return []
    mask = layer.mask(sources)
    wanted = _read(layer, [mask], other, targets, purpose="edge-means", more=MORE)[0].mean(dim=0)  # (target,)
    numbers = [layer.places.index(source) for source in sources]
    without = []
    for number in numbers:
        one = mask.clone()
        one[number] = False
        without.append(one)
    values = _read(layer, [mask, *without], other, targets, purpose="edges", more=1)  # (choice, sample, target)
    off = (values - wanted).square().mean(dim=1)
    rises, weights = (off[1:] - off[0]).clamp_min(0.0), values[0].mean(dim=0) - values[1:].mean(dim=1)
    found = []
    for column, target in enumerate(targets):
        rows = [row for row, source in enumerate(sources) if source.position <= target.position]
        most = max((float(rises[row, column]) for row in rows), default=0.0)
        for row in rows:
            importance = float(rises[row, column]) / most if most > 0 else 0.0
            found.append(Link(sources[row], target, float(weights[row, column]), importance))
    return found


def _read(
    layer: Layer, masks: Sequence[Tensor], other: HookPoint, targets: Sequence[Place], *, purpose: str, more: int
) -> Float[Tensor, "choice sample target"]:
    """Codes of the targets, some choices at once."""
    each = layer.n_samples(more) * layer.n_positions * layer.subject.coders[other].d_sae
    size = max(1, _AT_ONCE // max(1, each))
    positions, features = [place.position for place in targets], [place.feature for place in targets]
    parts = []
    for start in range(0, len(masks), size):
        some = torch.stack(list(masks[start : start + size]))
        codes = layer.read_behind(some, other, purpose=purpose, more=more)
        parts.append(codes[:, :, positions, features].double().cpu())
    return torch.cat(parts)


def kept_links(found: Sequence[Link], *, least: float) -> list[Link]:
    """Those that matter, and of each target the one that matters most: no feature is left without a cause."""
    best: dict[Place, Link] = {}
    for link in found:
        now = best.get(link.target)
        if now is None or (link.importance, abs(link.weight)) > (now.importance, abs(now.weight)):
            best[link.target] = link
    return [link for link in found if link.importance >= max(least, 1e-12) or link is best[link.target]]
