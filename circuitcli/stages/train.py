"""``circuit train``: sparse autoencoders for all collected hook points, in one pass over the cache."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import progress, runs
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, Record, SaeRecord
from circuitcli.settings.sources import flatten
from circuitcli.stages.learners import calibrate, new_learners
from circuitcli.stages.measure import HeldOut
from circuitcli.stages.request import Request, changing_nothing, fingerprint, needed, resumable
from circuitcli.training.plan import Plan, lessons, schedule, width
from circuitcli.training.plan import plan as planned

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.training.learner import Learner
    from circuitcli.training.trackers.tracker import TrackedRun

NAME = "train"
FOLDER = "saes"
ACTIVATIONS = "activations"
CHECKPOINT = "checkpoint"
LOGS = "logs"
# Settings that change no result.
_NO_MATTER = ("train.checkpoint_tokens", "train.log")


def run(request: Request) -> list[Record]:
    """One record for each hook point, trained now or before.

    Raises InputError without activations or with too few, SettingsError if k is more than the width, CircuitError if a
    loss stops being finite.
    """
    found = _activations(request)
    lessons(request.settings.sae.architecture, [HookPoint.parse(record.hook) for record in found])
    for record in found:
        width(request.settings, d_in=record.d_model)
    planned(request.settings, n_rows=found[0].n_tokens)
    inputs = {f"activations {record.hook}": record.digest for record in found}
    print_ = fingerprint(request, ("sae.", "train.", "seed"), inputs, without=_NO_MATTER)
    unfinished = request.run.path / FOLDER / CHECKPOINT
    return resumable(request, NAME, print_, partial(_work, request, print_.digest), partial=unfinished)


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    found = _activations(request)
    made = planned(request.settings, n_rows=found[0].n_tokens)
    widths = [width(request.settings, d_in=record.d_model) for record in found]
    parameters = sum(2 * record.d_model * d_sae for record, d_sae in zip(found, widths, strict=True))
    sparse = sum(
        2 * record.d_model * (d_sae + 4 * request.settings.sae.k) for record, d_sae in zip(found, widths, strict=True)
    )
    pool = min(request.settings.train.pool_tokens, made.stop_row) * sum(record.d_model for record in found)
    return [
        ("autoencoders", f"{len(found)}: {' '.join(record.hook for record in found)}"),
        ("features", f"{widths[0]:,}, {request.settings.sae.k} of them active per token"),
        ("tokens", f"{made.tokens:,} in {made.n_steps:,} steps; {made.held_out:,} held out"),
        ("learning rate", f"{schedule(request.settings, made, d_sae=widths[0]).peak:.2g}"),
        ("disk", f"{_gigabytes(4 * parameters)} GB, and {_gigabytes(12 * parameters)} GB while training"),
        ("memory", f"about {_gigabytes(16 * parameters + 4 * pool)} GB"),
        ("arithmetic", f"about {sparse * made.tokens:.1e} floating-point operations"),
    ]


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f}"


def _activations(request: Request) -> list[ActivationsRecord]:
    return needed(request, ActivationsRecord, stage=NAME, hint="run `circuit collect` before it")


def _work(request: Request, digest: str, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import choose_device
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.trackers.tracker import check_trackers

    checkpoints = Checkpoints(request.run.path / FOLDER / CHECKPOINT, digest)
    hooks = [HookPoint.parse(record.hook) for record in _activations(request)]
    with changing_nothing():
        cache = ActivationCache(request.run.path / ACTIVATIONS, hooks)
        made = planned(request.settings, n_rows=cache.n_tokens)
        device = choose_device(request.settings.model.device)
        check_trackers(request.settings.train.log)
    if not resumes:
        checkpoints.remove()
    tracked = _tracked(request, digest, starts_over=checkpoints.step() == 0)
    learners = _trained(request, cache, made, checkpoints, device, tracked)
    records = _finished(request, cache, made, learners)
    checkpoints.remove()
    return records, {"tokens": made.tokens, "held_out": made.held_out}


def _trained(
    request: Request,
    cache: "ActivationCache",
    made: Plan,
    checkpoints: Any,
    device: "torch.device",
    tracked: "TrackedRun",
) -> "list[Learner]":
    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.training.log import METRICS, MetricsLog
    from circuitcli.training.trackers.tracker import trackers
    from circuitcli.training.trainer import Trainer

    train = request.settings.train
    batches = ShuffledBatches(
        cache,
        hooks=cache.hooks,
        batch_size=train.batch_size,
        n_tokens=made.tokens,
        seed=request.settings.seed,
        pool_tokens=train.pool_tokens,
        stop_row=made.stop_row,
    )
    learners = new_learners({"": request.settings}, cache, batches, device, resumes=checkpoints.step() > 0)
    places = [learner.place(hook) for learner in learners for hook in learner.student.sae_hooks]
    with trackers(train.log, tracked) as opened:
        Trainer(
            learners,
            batches,
            batch_size=train.batch_size,
            checkpoints=checkpoints,
            checkpoint_steps=max(1, train.checkpoint_tokens // train.batch_size),
            logs={place: MetricsLog(request.run.path / FOLDER / place / METRICS) for place in places},
            trackers=opened,
        ).run()
    calibrate(learners, batches)
    return learners


def _tracked(request: Request, digest: str, *, starts_over: bool) -> "TrackedRun":
    """What trackers are told: a name that belongs to this training of this run directory."""
    from circuitcli.training.trackers.tracker import TrackedRun

    place = request.run.path.resolve()
    kept = ("model.name", "sae.", "train.", "data.", "seed")
    return TrackedRun(
        directory=request.run.path / LOGS,
        name=f"{place.name}-{runs.digest([digest, str(place)]).removeprefix('sha256:')[:8]}",
        starts_over=starts_over,
        settings={name: value for name, value in flatten(request.settings).items() if name.startswith(kept)},
    )


def _finished(request: Request, cache: "ActivationCache", made: Plan, learners: "Sequence[Learner]") -> list[Record]:
    """Measure each SAE and write its files."""
    held_out = HeldOut.of(request, cache, made)
    records: list[Record] = []
    for learner in progress.track(learners, "measure", unit="SAEs"):
        for sae in learner.finished().values():
            records.append(_saved(request, learner, sae, made, held_out.facts(sae.to(held_out.device))))
    return records


def _saved(
    request: Request, learner: "Learner", sae: "SparseAutoencoder", made: Plan, facts: dict[str, Any]
) -> SaeRecord:
    from circuitcli.saes import files

    directory = Path(FOLDER) / str(sae.hook)
    facts = facts | {
        "trained_as": request.settings.sae.architecture,
        "dead": learner.student.dead_share(sae.hook),
        "dead_tokens": made.dead_tokens,
        "trained_tokens": made.tokens,
        "learning_rate": learner.pace.schedule.peak,
        "model": request.run.manifest().get("model", request.settings.model.name),
        "seed": request.settings.seed,
    }
    digest = files.save(sae, request.run.path / directory, **facts)
    return SaeRecord(
        hook=str(sae.hook),
        architecture=sae.architecture,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        **sae.options,
        path=directory.as_posix(),
        digest=digest,
        explained_variance=facts["explained_variance"],
        l0=facts["l0"],
        loss_recovered=facts.get("loss_recovered"),
        dead=facts["dead"],
    )
