"""What `circuit train` trains: a learner for each SAE, made from settings and the cache."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.plan import END_TO_END, Plan, lessons, plan, schedule, width

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.mlp import Mlp
    from circuitcli.training.architectures.student import Moments
    from circuitcli.training.learner import Learner

# Tokens from which thresholds are set after training.
CALIBRATION_TOKENS = 65_536


def new_learners(
    variants: Mapping[str, Settings],
    cache: "ActivationCache",
    batches: "ShuffledBatches",
    device: "torch.device",
    *,
    resumes: bool,
    share: tuple[int, int] = (0, 1),
    mlps: "Mapping[tuple[HookPoint, ...], Mlp] | None" = None,
) -> "list[Learner]":
    """Untrained; where a checkpoint will be loaded over them, without reading a batch.

    variants: settings by the name that they have among those of a sweep. share: (i, n) takes every n-th from the i-th.
    mlps: what lies between the ends of Jacobian pairs.
    """
    import torch

    if resumes:
        first = {hook: torch.zeros(1, cache.d_model(hook)) for hook in cache.hooks}
    else:
        first = next(batches.from_step(0))
    first = {hook: rows.to(device) for hook, rows in first.items()}
    moments = {hook: _moments(cache, hook) for hook in cache.hooks}
    everything = [
        (name, settings, hooks)
        for name, settings in variants.items()
        for hooks in lessons(settings.sae.architecture, cache.hooks)
    ]
    return [
        _new_learner(
            name, settings, hooks, first, moments, plan(settings, n_rows=cache.n_tokens), (mlps or {}).get(hooks)
        )
        for name, settings, hooks in everything[share[0] :: share[1]]
    ]


def _new_learner(
    variant: str,
    settings: Settings,
    hooks: tuple[HookPoint, ...],
    first: "Mapping[HookPoint, torch.Tensor]",
    moments: "Mapping[HookPoint, Moments]",
    made: Plan,
    mlp: "Mlp | None",
) -> "Learner":
    from circuitcli.training.architectures.registry import new_student
    from circuitcli.training.architectures.student import Lesson, SingleStudent
    from circuitcli.training.end_to_end import EndToEnd
    from circuitcli.training.learner import Learner, Pace

    d_sae = width(settings, d_in=first[hooks[0]].shape[1])
    train = settings.train
    lesson = Lesson(settings.sae, d_sae, train.auxk_weight, made.dead_tokens, settings.seed, train.autocast)
    pace = Pace(schedule(settings, made, d_sae=d_sae), settings.train.clip)
    student = new_student(hooks, first, lesson, moments, mlp=mlp)
    if settings.train.objective == END_TO_END:
        assert isinstance(student, SingleStudent)
        variances = {hook: own.variance for hook, own in moments.items()}
        student.objective = EndToEnd(variances, settings.train.downstream_weight, settings.train.local_weight)
    return Learner(student, pace, variant=variant)


def _moments(cache: "ActivationCache", hook: HookPoint) -> "Moments":
    from circuitcli.training.architectures.student import Moments

    squares = cache.mean_square_norm(hook)
    return Moments(squares, max(0.0, squares - float(cache.mean(hook).square().sum())))


def calibrate(learners: "Sequence[Learner]", batches: "ShuffledBatches") -> None:
    """Set what is set after training, from rows that were trained on."""
    for batch in batches.from_step(0):
        for learner in learners:
            learner.student.calibrate(batch, n_tokens=batches.n_steps * batches.batch_size)
