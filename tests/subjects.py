"""Random subjects: a model, SAEs, a prompt, a metric and baselines, in double precision."""

import torch
from support import D_MODEL, D_SAE, adapter_of, random_ids, random_saes

from circuitcli.attribution.baselines import Absent
from circuitcli.attribution.metrics import LogitDifference, LogProb, Metric
from circuitcli.attribution.subject import Prompt, Subject, subject_of
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models.partial import clean_pass

FULL = ("attn", "mlp", "resid")


def random_subject(
    family: str = "gpt2",
    *,
    sites=FULL,
    layers=(0, 1, 2),
    n: int = 6,
    first: int = 0,
    metric: Metric | None = None,
    normalisation: str = "none",
    seed: int = 0,
) -> Subject:
    adapter = adapter_of(family, seed=seed)
    hooks = hook_points(layers, sites)
    return subject_with(adapter, random_saes(hooks, normalisation=normalisation), n=n, first=first, metric=metric)


def subject_with(adapter, saes, *, n: int = 6, first: int = 0, metric: Metric | None = None) -> Subject:
    ids = random_ids(n)
    prompt = Prompt("random", ids, tuple(f"t{i}" for i in ids[0].tolist()), first)
    clean = clean_pass(adapter, ids, tuple(sorted(saes)))
    return subject_of(adapter, saes, prompt, clean, metric or LogProb("log-prob", "nats", 3))


def random_baseline(subject: Subject, *, seed: int = 5, scale: float = 0.3) -> dict[HookPoint, Absent]:
    """Codes and errors that are neither zero nor those of the run."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(1, 1, width, generator=generator, dtype=torch.float64) * scale

    return {hook: Absent(draw(D_SAE).relu(), draw(D_MODEL)) for hook in subject.hooks}


class LinearMetric(LogitDifference):
    """A metric that is linear in the last residual where the final norm is the identity."""
