"""What is trained before it has learnt anything: an optimiser for each coder, made from settings and the cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.plan import END_TO_END, Plan, hook_groups, schedule, training_plan, width
from circuitcli.training.starting import SAMPLE_ROWS

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.mlp import Mlp
    from circuitcli.saes.base import SparseCoder
    from circuitcli.training.architectures.trainable import ActivationMoments, Trainable
    from circuitcli.training.optimiser import CoderOptimiser

# Tokens from which thresholds are set after training.
CALIBRATION_TOKENS = 65_536


def new_optimisers(
    variants: Mapping[str, Settings],
    cache: "ActivationCache",
    batches: "ShuffledBatches",
    device: "torch.device",
    *,
    resumes: bool,
    share: tuple[int, int] = (0, 1),
    mlps: "Mapping[tuple[HookPoint, ...], Mlp] | None" = None,
    starts: "Mapping[HookPoint, SparseCoder] | None" = None,
) -> "list[CoderOptimiser]":
    """Untrained; where a checkpoint will be loaded over them, without reading a batch.

    variants: settings by the name that they have among those of a sweep. share: (i, n) takes every n-th from the i-th.
    mlps: what lies between the ends of Jacobian pairs. starts: the coders that take the place of random ones.
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
        for hooks in hook_groups(settings.sae.architecture, cache.hooks)
    ]
    begin = _beginning(cache, starts) if starts else _as_it_is
    return [
        _new_optimiser(
            name,
            settings,
            hooks,
            first,
            moments,
            training_plan(settings, n_rows=cache.n_tokens),
            (mlps or {}).get(hooks),
            begin,
        )
        for name, settings, hooks in everything[share[0] :: share[1]]
    ]


def _new_optimiser(
    variant: str,
    settings: Settings,
    hooks: tuple[HookPoint, ...],
    first: "Mapping[HookPoint, torch.Tensor]",
    moments: "Mapping[HookPoint, ActivationMoments]",
    plan: Plan,
    mlp: "Mlp | None",
    begin: "Callable[[Trainable], None]",
) -> "CoderOptimiser":
    from circuitcli.training.architectures.registry import new_trainable
    from circuitcli.training.architectures.trainable import TrainableCoder, TrainingConfig
    from circuitcli.training.end_to_end import EndToEnd
    from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig

    d_sae = width(settings, d_in=first[hooks[0]].shape[1])
    train = settings.train
    config = TrainingConfig(settings.sae, d_sae, train.auxk_weight, plan.dead_tokens, settings.seed, train.autocast)
    optimiser_config = OptimiserConfig(schedule(settings, plan, d_sae=d_sae), settings.train.clip)
    trainable = new_trainable(hooks, first, config, moments, mlp=mlp)
    begin(trainable)
    if settings.train.objective == END_TO_END:
        assert isinstance(trainable, TrainableCoder)
        variances = {hook: of_hook.variance for hook, of_hook in moments.items()}
        trainable.objective = EndToEnd(variances, settings.train.downstream_weight, settings.train.local_weight)
    return CoderOptimiser(trainable, optimiser_config, variant=variant)


def _as_it_is(trainable: "Trainable") -> None:
    """Begin with random weights."""


def _beginning(cache: "ActivationCache", starts: "Mapping[HookPoint, SparseCoder]") -> "Callable[[Trainable], None]":
    """What lets a trainable begin from its coders among these; the same each time, so that it can be resumed."""

    def begin(trainable: "Trainable") -> None:
        own = {hook: starts[hook] for hook in trainable.sae_hooks}
        rows = {hook: cache.rows(hook, 0, min(SAMPLE_ROWS, cache.n_tokens)) for hook in trainable.hooks}
        for coder in own.values():
            coder.check_reads({hook: cache.d_model(hook) for hook in cache.hooks})
        trainable.begin_from(own, rows)

    return begin


def _moments(cache: "ActivationCache", hook: HookPoint) -> "ActivationMoments":
    from circuitcli.training.architectures.trainable import ActivationMoments

    squares = cache.mean_square_norm(hook)
    return ActivationMoments(squares, max(0.0, squares - float(cache.mean(hook).square().sum())))


def calibrate(optimisers: "Sequence[CoderOptimiser]", batches: "ShuffledBatches") -> None:
    """Set what is set after training, from rows that were trained on."""
    for batch in batches.from_step(0):
        for optimiser in optimisers:
            optimiser.trainable.calibrate(batch, n_tokens=batches.n_steps * batches.batch_size)
