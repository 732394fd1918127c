"""What `circuit train` does for one SAE at each hook point as for all variants of a sweep: train, measure, save."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import progress, runs
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten
from circuitcli.stages.learners import calibrate, new_learners
from circuitcli.stages.measure import HeldOut
from circuitcli.stages.request import Request, changing_nothing
from circuitcli.training.plan import Plan
from circuitcli.training.plan import plan as planned

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.learner import Learner
    from circuitcli.training.trackers.tracker import TrackedRun

FOLDER = "saes"
ACTIVATIONS = "activations"
CHECKPOINT = "checkpoint"
LOGS = "logs"


@dataclass(frozen=True)
class Training:
    """One call: settings by the name of their variant (empty without a sweep), and the folder below the run for all."""

    request: Request
    variants: Mapping[str, Settings]
    folder: Path
    digest: str

    @property
    def path(self) -> Path:
        """Where SAEs, metrics and checkpoints go."""
        return self.request.run.path / self.folder


@dataclass(frozen=True)
class Finished:
    """A trained SAE that was measured and saved, at ``path`` below the run."""

    variant: str
    sae: "SparseAutoencoder"
    path: Path
    digest: str
    facts: Mapping[str, Any]

    def fields(self) -> dict[str, Any]:
        """What records tell of it."""
        return {
            "hook": str(self.sae.hook),
            **({"target": str(self.sae.target)} if self.sae.is_transcoder else {}),
            "architecture": self.sae.architecture,
            "d_in": self.sae.d_in,
            "d_sae": self.sae.d_sae,
            **self.sae.options,
            "path": self.path.as_posix(),
            "digest": self.digest,
            **{name: self.facts.get(name) for name in ("explained_variance", "l0", "loss_recovered", "dead")},
        }


def finished_saes(training: Training, found: list[ActivationsRecord], *, resumes: bool) -> list[Finished]:
    """Train, from a checkpoint if there is one, measure and save. Raises CircuitError if a loss stops being finite."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import choose_device
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.trackers.tracker import check_trackers

    request = training.request
    checkpoints = Checkpoints(training.path / CHECKPOINT, training.digest)
    with changing_nothing():
        cache = ActivationCache(request.run.path / ACTIVATIONS, [HookPoint.parse(record.hook) for record in found])
        made = planned(request.settings, n_rows=cache.n_tokens)
        device = choose_device(request.settings.model.device)
        check_trackers(request.settings.train.log)
    if not resumes:
        checkpoints.remove()
    learners = _trained(training, cache, made, checkpoints, device)
    finished = list(_measured(training, cache, made, learners))
    checkpoints.remove()
    return finished


def _trained(
    training: Training, cache: "ActivationCache", made: Plan, checkpoints: "Checkpoints", device: "torch.device"
) -> "list[Learner]":
    from circuitcli.training.log import METRICS, MetricsLog
    from circuitcli.training.trackers.tracker import trackers
    from circuitcli.training.trainer import Trainer

    train = training.request.settings.train
    resumes = checkpoints.step() > 0
    batches = _batches(training, cache, made)
    learners = new_learners(training.variants, cache, batches, device, resumes=resumes)
    places = [learner.place(hook) for learner in learners for hook in learner.student.sae_hooks]
    with trackers(train.log, _tracked(training, starts_over=not resumes)) as opened:
        Trainer(
            learners,
            batches,
            batch_size=train.batch_size,
            checkpoints=checkpoints,
            checkpoint_steps=max(1, train.checkpoint_tokens // train.batch_size),
            logs={place: MetricsLog(training.path / place / METRICS) for place in places},
            trackers=opened,
        ).run()
    calibrate(learners, batches)
    return learners


def _batches(training: Training, cache: "ActivationCache", made: Plan) -> "ShuffledBatches":
    from circuitcli.activations.batches import ShuffledBatches

    settings = training.request.settings
    return ShuffledBatches(
        cache,
        hooks=cache.hooks,
        batch_size=settings.train.batch_size,
        n_tokens=made.tokens,
        seed=settings.seed,
        pool_tokens=settings.train.pool_tokens,
        stop_row=made.stop_row,
    )


def _tracked(training: Training, *, starts_over: bool) -> "TrackedRun":
    """What trackers are told: a name that belongs to this training of this run directory."""
    from circuitcli.training.trackers.tracker import TrackedRun

    request = training.request
    place = request.run.path.resolve()
    kept = ("model.name", "sae.", "train.", "data.", "seed")
    return TrackedRun(
        directory=request.run.path / LOGS,
        name=f"{place.name}-{runs.digest([training.digest, str(place)]).removeprefix('sha256:')[:8]}",
        starts_over=starts_over,
        settings={name: value for name, value in flatten(request.settings).items() if name.startswith(kept)},
    )


def _measured(
    training: Training, cache: "ActivationCache", made: Plan, learners: "list[Learner]"
) -> Iterator[Finished]:
    """Measure each SAE and write its files."""
    held_out = HeldOut.of(training.request, cache, made.held_out_rows)
    for learner in progress.track(learners, "measure", unit="SAEs"):
        for sae in learner.finished().values():
            yield _saved(training, learner, sae, made, held_out.facts(sae.to(held_out.device)))


def _saved(
    training: Training, learner: "Learner", sae: "SparseAutoencoder", made: Plan, facts: dict[str, Any]
) -> Finished:
    from circuitcli.saes import files

    request, settings = training.request, training.variants[learner.variant]
    path = training.folder / learner.place(sae.hook)
    facts = facts | {
        "trained_as": settings.sae.architecture,
        "dead": learner.student.dead_share(sae.hook),
        "dead_tokens": planned(settings, n_rows=made.n_rows).dead_tokens,
        "trained_tokens": made.tokens,
        "learning_rate": learner.pace.schedule.peak,
        "model": request.run.manifest().get("model", request.settings.model.name),
        "seed": settings.seed,
    }
    digest = files.save(sae, request.run.path / path, **facts)
    return Finished(learner.variant, sae, path, digest, facts)
