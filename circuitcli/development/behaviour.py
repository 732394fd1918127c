"""Whether a behaviour is there at a checkpoint: its metric against what knowing nothing of the context gives."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean

import torch

from circuitcli.attribution import metrics
from circuitcli.attribution.prompts import Prompt
from circuitcli.development.effects import by_length
from circuitcli.models.adapter import ModelAdapter

BOOTSTRAP = 1000


@dataclass(frozen=True)
class Presence:
    """The metric, what chance gives, and their difference, a mean over prompts with a bootstrapped 95 % interval."""

    metric: float
    chance: float
    low: float
    high: float

    @property
    def is_there(self) -> bool:
        """Whether the model does better than chance, surely."""
        return self.low > 0


@torch.no_grad()
def clean_metrics(adapter: ModelAdapter, prompts: Sequence[Prompt], *, metric: str) -> list[float]:
    """The metric of each prompt, which has a target unless the metric needs none."""
    values: dict[int, float] = {}
    for batch in by_length(prompts):
        ids = torch.tensor([prompt.ids for prompt in batch], device=adapter.device)
        logits = adapter.logits(ids)
        targets = torch.tensor([prompt.target or 0 for prompt in batch], device=ids.device)
        foils = [prompt.foil for prompt in batch]
        made = metrics.build(metric, ids=ids, last=logits[:, -1], target=targets, foil=foils)
        for prompt, value in zip(batch, made.value(logits[:, made.positions]).tolist(), strict=True):
            values[id(prompt)] = value
    return [values[id(prompt)] for prompt in prompts]


def chances(prompts: Sequence[Prompt], counts: Mapping[int, int], *, metric: str) -> list[float]:
    """The metric of each prompt if tokens were drawn by their frequency in a text, of which ``counts`` are.

    A difference of logits is then that of the logarithms, so that what is only more frequent is no behaviour.
    """
    total = sum(counts.values()) + len(counts) + 1

    def log_p(token: int) -> float:
        return log((counts.get(token, 0) + 1) / total)

    if metric == "cross-entropy":
        return [fmean(log_p(token) for token in prompt.ids[1:]) for prompt in prompts]
    of_targets = [log_p(prompt.target or 0) for prompt in prompts]
    if metric == "logit-diff":
        return [own - log_p(prompt.foil or 0) for own, prompt in zip(of_targets, prompts, strict=True)]
    return of_targets


def presence(metric: Sequence[float], chance: Sequence[float], *, seed: int) -> Presence:
    """Of the same prompts, in the same order."""
    gains = [own - other for own, other in zip(metric, chance, strict=True)]
    generator = random.Random(seed)
    means = sorted(fmean(generator.choices(gains, k=len(gains))) for _ in range(BOOTSTRAP))
    low, high = means[round(0.025 * (BOOTSTRAP - 1))], means[round(0.975 * (BOOTSTRAP - 1))]
    return Presence(fmean(metric), fmean(chance), low, high)
