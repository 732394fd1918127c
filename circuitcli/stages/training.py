"""What `circuit train` does for one SAE at each hook point as for all variants of a sweep: train, measure, save."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import group, processes, progress, runs
from circuitcli.allocator import give_back_freed_memory
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, is_hook
from circuitcli.records import ActivationsRecord, EvaluationRecord, Record
from circuitcli.saes.folder import is_recorded
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten
from circuitcli.stages.learners import CALIBRATION_TOKENS, calibrate, new_learners
from circuitcli.stages.measure import HeldOut
from circuitcli.stages.mlps import mlps_between
from circuitcli.stages.request import Request, changing_nothing
from circuitcli.stages.text_batches import then_texts
from circuitcli.training.log import METRICS
from circuitcli.training.plan import END_TO_END, Plan, pool_tokens, read_hooks
from circuitcli.training.plan import plan as planned

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.training.architectures.student import Batch
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.learner import Learner
    from circuitcli.training.trackers.tracker import TrackedRun

FOLDER, SWEEP = "saes", "sweep"
EVALUATION = "evaluate"
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
    """A trained SAE that was measured and saved: its variant, and what records tell of it."""

    variant: str
    fields: Mapping[str, Any]

    @classmethod
    def of(
        cls, variant: str, sae: "SparseAutoencoder", *, path: Path, digest: str, facts: Mapping[str, Any]
    ) -> "Finished":
        """The SAE at a path below the run."""
        scores = {name: facts.get(name) for name in ("explained_variance", "l0", "loss_recovered", "dead")}
        target = {"target": str(sae.target)} if sae.is_transcoder else {}
        shape = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, **sae.options}
        place = {"path": path.as_posix(), "digest": digest}
        return cls(variant, {"hook": str(sae.hook), **target, **shape, **place, **scores})


def check_processes(settings: Settings) -> None:
    """Raise SettingsError if the processes that run this command cannot share the work out."""
    n = processes.count()
    if n > 1 and settings.train.parallel == "data" and settings.train.objective == END_TO_END:
        raise SettingsError(
            "end-to-end training reads whole texts, which are not shared out to processes",
            hint="use --set train.parallel=hooks, or one process",
        )
    if settings.train.parallel == "data" and settings.train.batch_size % n:
        raise SettingsError(
            f"train.batch_size={settings.train.batch_size} cannot be shared out evenly to {n} processes",
            hint=f"choose a multiple of {n}, or --set train.parallel=hooks",
        )


def finished_saes(training: Training, found: list[ActivationsRecord], *, resumes: bool) -> list[Finished]:
    """Train, from a checkpoint if there is one, measure and save. Raises CircuitError if a loss stops being finite.

    Of several processes the main one gets what all have made, the others what they know of.
    """
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
    group.start(device)
    if not resumes and processes.is_main():
        checkpoints.remove()
    group.barrier()
    learners = _trained(training, cache, made, checkpoints, device)
    for learner in learners:
        learner.let_go()
    # Measuring runs the model, whose tensors have other sizes.
    give_back_freed_memory()
    shares_rows = request.settings.train.parallel == "data"
    # Processes that shared rows all have all SAEs.
    mine = learners[processes.rank() :: processes.count()] if shares_rows else learners
    told = group.gather([vars(one) for one in _measured(training, cache, made, mine)])
    finished = _in_order(Finished(**one) for part in told for one in part)
    if processes.is_main():
        checkpoints.remove()
        _remove_others(training, finished)
    return finished


def _remove_others(training: Training, finished: Sequence[Finished]) -> None:
    """Remove what an earlier training left: SAEs of other hook points or variants, and what was measured of them.

    Those that it did not make, which have no metrics, stay.
    """
    run, kept = training.request.run, {str(one.fields["path"]) for one in finished}
    pattern = "*/*" if training.folder.name == SWEEP else "*"
    for metrics in sorted(training.path.glob(f"{pattern}/{METRICS}")):
        folder = metrics.parent
        if is_hook(folder.name) and folder.relative_to(run.path).as_posix() not in kept:
            shutil.rmtree(folder)
            if training.folder.name == SWEEP and not any(folder.parent.iterdir()):
                folder.parent.rmdir()
    finished_stages = [name for name, entry in run.manifest()["stages"].items() if entry.get("state") == "finished"]
    measured = [name for name in finished_stages if name.partition(":")[0] == EVALUATION]
    run.forget(name for name in measured if not all(_is_there(run, record) for record in run.stage_records(name)))


def _is_there(run: runs.Run, record: Record) -> bool:
    """Whether an SAE that was measured is still what it was; those of other runs are not looked at."""
    if not isinstance(record, EvaluationRecord) or not record.path.startswith(f"{FOLDER}/"):
        return True
    directory = run.path / record.path
    try:
        return is_recorded(directory, record.digest)
    except InputError:
        return False


def _in_order(finished: Iterable[Finished]) -> list[Finished]:
    """As one process would have made them: variant after variant, hook points in the order of the model."""
    by_variant: dict[str, list[Finished]] = {}
    for one in finished:
        by_variant.setdefault(one.variant, []).append(one)
    return [one for own in by_variant.values() for one in sorted(own, key=_order)]


def _order(finished: Finished) -> tuple[int, int]:
    return HookPoint.parse(finished.fields["hook"]).order


def _trained(
    training: Training, cache: "ActivationCache", made: Plan, checkpoints: "Checkpoints", device: "torch.device"
) -> "list[Learner]":
    from circuitcli.training.log import MetricsLog
    from circuitcli.training.ranks import ALONE, AllRanks
    from circuitcli.training.trackers.tracker import trackers
    from circuitcli.training.trainer import Trainer

    request, train = training.request, training.request.settings.train
    shares_rows = processes.count() > 1 and train.parallel == "data"
    ranks = AllRanks() if processes.count() > 1 else ALONE
    resumes = checkpoints.step() > 0
    pool = _pool_tokens(training, cache)
    batches = _batches(training, cache, made, cache.hooks, pool=pool)
    share = (0, 1) if shares_rows else (ranks.rank, ranks.n)
    mlps = mlps_between(request, cache, training.variants.values(), device)
    learners = new_learners(training.variants, cache, batches, device, resumes=resumes, share=share, mlps=mlps)
    for learner in learners:
        learner.student.ranks = ranks if shares_rows else ALONE
    hooks = sorted({hook for one in learners for hook in one.student.hooks})
    batches = _batches(training, cache, made, hooks, pool=pool)
    places = [learner.place(hook) for learner in learners for hook in learner.student.sae_hooks]
    if shares_rows and not processes.is_main():
        places = []
    tracked = train.log if processes.is_main() else ()
    with trackers(tracked, _tracked(training, starts_over=not resumes)) as opened:
        Trainer(
            learners,
            then_texts(request, cache, made, batches) if train.objective == END_TO_END else batches,
            batch_size=train.batch_size,
            checkpoints=checkpoints,
            checkpoint_steps=max(1, train.checkpoint_tokens // train.batch_size),
            logs={place: MetricsLog(training.path / place / METRICS) for place in places},
            trackers=opened,
            ranks=ranks,
            shares_rows=shares_rows,
            held_out=partial(_held_out, cache, made, hooks) if train.keep == "best" else None,
            tf32=train.tf32,
        ).run()
    for learner in learners if train.keep == "best" else ():
        learner.take_best()
    del batches
    if uncalibrated := [learner for learner in learners if learner.student.needs_calibration]:
        hooks = sorted({hook for one in uncalibrated for hook in one.student.hooks})
        calibrate(uncalibrated, _batches(training, cache, made, hooks, pool=pool, most_tokens=CALIBRATION_TOKENS))
    return learners


def _held_out(cache: "ActivationCache", made: Plan, hooks: Sequence[HookPoint]) -> "Iterator[Batch]":
    """All rows that training does not see, in order."""
    rows = made.held_out_rows
    for piece in cache.pieces(rows.start, rows.stop, size=made.batch_size):
        yield {hook: cache.finite_rows(hook, *piece) for hook in hooks}


def _pool_tokens(training: Training, cache: "ActivationCache") -> int:
    """Rows that are shuffled together: for all hook points that are trained on, by whichever process, as the order of
    all rows depends on it."""
    architectures = {settings.sae.architecture for settings in training.variants.values()}
    hooks = read_hooks(architectures, cache.hooks)
    row_bytes = sum(cache.d_model(hook) * cache.dtype(hook).itemsize for hook in hooks)
    return pool_tokens(training.request.settings, row_bytes=row_bytes)


def _batches(
    training: Training,
    cache: "ActivationCache",
    made: Plan,
    hooks: Sequence[HookPoint],
    *,
    pool: int,
    most_tokens: int | None = None,
) -> "ShuffledBatches":
    """most_tokens: fewer than the run trains on, from a pool that holds no more."""
    from circuitcli.activations.batches import ShuffledBatches

    settings = training.request.settings
    n_tokens = made.tokens
    if most_tokens is not None:
        n_tokens = min(n_tokens, max(most_tokens, settings.train.batch_size))
        pool = min(pool, 2 * n_tokens)
    return ShuffledBatches(
        cache,
        hooks=hooks,
        batch_size=settings.train.batch_size,
        n_tokens=n_tokens,
        seed=settings.seed,
        pool_tokens=pool,
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
    if not learners:
        return
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
        "kept_tokens": (learner.best.step or made.n_steps) * made.batch_size,
        "learning_rate": learner.pace.schedule.peak,
        "model": request.run.manifest().get("model", request.settings.model.name),
        "seed": settings.seed,
    }
    digest = files.save(sae, request.run.path / path, **facts)
    return Finished.of(learner.variant, sae, path=path, digest=digest, facts=facts)
