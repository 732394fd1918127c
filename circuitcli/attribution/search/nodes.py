"""The features of one hook point that keep the next token: positions first, then features from the least important on,
then as many of these again, from the most important on, as it takes."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcli.attribution.search.patching import MORE, Layer, Place
from circuitcli.progress import task

# The search for positions is coarse, so it goes further down than the search for features.
_COARSE = 0.75
# Choices whose divergence is looked at in one go: their activations are in memory together.
_CHOICES = 64
# Divergences are compared to so many decimals, in nats: what reaches nothing is equal, however a batch rounds it.
_DECIMALS = 7


@dataclass(frozen=True)
class Ranked:
    """A feature at a position. left: how many were left when it was dropped; kl: divergence with these, in nats."""

    place: Place
    left: int
    kl: float


@dataclass(frozen=True)
class Found:
    """The circuit at one hook point.

    effects: by how much the divergence rises without each of its features. kl: that of all of them; floor: that with
    every feature kept; empty: with none. Three are told with more and other samples than the search had.
    """

    places: tuple[Place, ...]
    effects: tuple[float, ...]
    kl: float
    floor: float
    empty: float
    n_active: int


def search(layer: Layer, upstream: Collection[int], *, is_first: bool, is_last: bool) -> Found:
    """The features to keep at one hook point.

    upstream: positions of what is kept at the hook point before. At the last one the last position alone counts.
    """
    last = layer.n_positions - 1
    reach = min(upstream, default=0) if not is_first else 0
    positions = [last] if is_last else list(range(reach, last + 1))
    chosen = {last} | (set(upstream) & set(positions))
    if not is_last and not upstream:
        chosen = _positions(layer, positions)
    candidates = layer.mask([place for place in layer.places if place.position in chosen])
    ranks = ranked(layer, candidates)
    settings = layer.sampler.settings
    kept = walked_back(ranks, max_kl=settings.max_kl, patience=settings.patience)
    return _measured(layer, sorted(each.place for each in kept))


def _positions(layer: Layer, positions: Sequence[int]) -> set[int]:
    """The last position and those that lower the divergence most, one after the other."""
    settings = layer.sampler.settings
    chosen = {positions[-1]}
    while len(chosen) < min(settings.max_positions, len(positions)):
        now = float(divergences(layer, [_at(layer, chosen)])[0])
        if now <= _COARSE * settings.max_kl:
            break
        others = [position for position in positions if position not in chosen and len(layer.numbers_at(position))]
        if not others:
            break
        found = divergences(layer, [_at(layer, chosen | {other}) for other in others], more=MORE)
        chosen.add(min(zip(found, others, strict=True))[1])
    return chosen


def _at(layer: Layer, positions: Collection[int]) -> Bool[Tensor, " place"]:
    return layer.mask([place for place in layer.places if place.position in positions])


def divergences(
    layer: Layer, choices: Sequence[Bool[Tensor, " place"]], *, purpose: str = "search", more: int = 1
) -> list[float]:
    """Those of some choices, many at once."""
    found: list[float] = []
    for start in range(0, len(choices), _CHOICES):
        part = torch.stack(list(choices[start : start + _CHOICES]))
        found += layer.divergences(part, purpose=purpose, more=more).tolist()
    return found


def ranked(layer: Layer, candidates: Bool[Tensor, " place"]) -> list[Ranked]:
    """All candidates, the first dropped first: in each step those without which the divergence is smallest."""
    left, found = candidates.clone(), []
    with task(f"search {layer.hook}", total=int(left.sum()), unit="features") as advance:
        while n_left := int(left.sum()):
            numbers = left.nonzero()[:, 0].tolist()
            now, *without = divergences(layer, [left, *(_without(left, number) for number in numbers)])
            order = sorted((round(one, _DECIMALS), number) for one, number in zip(without, numbers, strict=True))
            for _, number in order[: math.ceil(n_left * layer.sampler.settings.drop)]:
                found.append(Ranked(layer.places[number], n_left, now))
                left[number] = False
            advance(n_left - int(left.sum()))
    return found


def _without(mask: Bool[Tensor, " place"], number: int) -> Bool[Tensor, " place"]:
    made = mask.clone()
    made[number] = False
    return made


def walked_back(ranks: Sequence[Ranked], *, max_kl: float, patience: int) -> list[Ranked]:
    """From the most important on, until the divergence is small enough, or has not fallen for a while.

    It does not fall at each step, so what was dropped is taken back from this end.
    """
    kept: list[Ranked] = []
    for _, step in groupby(reversed(ranks), key=lambda each: each.left):
        # What was dropped in one step comes back in one: the divergence is that with all of it.
        back = list(step)
        before = [one.kl for one in kept[-patience:]] if patience else []
        if len(before) == patience > 0 and back[0].kl > sum(before) / patience:
            break
        kept += back
        if back[0].kl <= max_kl:
            break
    return kept


def _measured(layer: Layer, places: Sequence[Place]) -> Found:
    mask = layer.mask(places)
    numbers = mask.nonzero()[:, 0].tolist()
    choices = [mask, torch.ones_like(mask), torch.zeros_like(mask), *(_without(mask, number) for number in numbers)]
    kl, floor, empty, *without = divergences(layer, choices, purpose="told", more=MORE)
    return Found(tuple(places), tuple(one - kl for one in without), kl, floor, empty, len(layer.places))
