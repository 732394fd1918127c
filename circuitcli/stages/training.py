"""What `circuit train` does for one SAE at each hook point as for all variants of a sweep: train, measure, save."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli import group, processes, runs
from circuitcli.allocator import give_back_freed_memory
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.manifest import NEXT, Fingerprint
from circuitcli.records import ActivationsRecord, TrainedRecord
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten
from circuitcli.stages.measure import joint_model, model_settings
from circuitcli.stages.measuring import Bench, measured_again, measured_coders
from circuitcli.stages.request import Request, changing_nothing
from circuitcli.stages.saes import SaeSource
from circuitcli.stages.unfinished import CHECKPOINT, Finished, Unfinished, remove_others
from circuitcli.training.plan import END_TO_END, JOINT, LEAST_IN_BATCH, Plan, training_plan

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseCoder
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.optimiser import CoderOptimiser
    from circuitcli.training.trackers.tracker import TrackedRun

FOLDER, SWEEP = "saes", "sweep"
ACTIVATIONS = "activations"
LOGS = "logs"


@dataclass(frozen=True)
class Training:
    """One call: settings by the name of their variant (empty without a sweep), and the folder below the run for all."""

    request: Request
    name: str
    variants: Mapping[str, Settings]
    folder: Path
    print_: Fingerprint
    # Of all SAEs: weights, gradients and moments; and how many features they have.
    state_bytes: int = 0
    features: str = ""
    # The coders that it begins from, by what they read: where they are, and once there is work the coders themselves.
    sources: Mapping[HookPoint, SaeSource] = field(default_factory=dict)
    starts: "Mapping[HookPoint, SparseCoder]" = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What tells this training from others."""
        return self.print_.digest

    @cached_property
    def unfinished(self) -> Unfinished:
        """What is under way; as the manifest says it once the work has begun."""
        is_aside = NEXT in self.request.run.stage(self.name)
        return Unfinished(self.request.run.path, self.folder, self.digest, self.print_.measuring, is_aside)

    @property
    def partial(self) -> Path:
        """Where that is."""
        return self.request.run.path / self.folder / CHECKPOINT


def check_processes(settings: Settings) -> None:
    """Raise SettingsError if the processes that run this command cannot share the work out."""
    n = processes.count()
    if n > 1 and settings.train.objective == JOINT:
        raise SettingsError("a model learns together with SAEs in one process", hint="run it as one process")
    if n > 1 and settings.train.parallel == "data" and settings.train.objective == END_TO_END:
        raise SettingsError(
            "end-to-end training reads whole texts, which are not shared out to processes",
            hint="use --set train.parallel=hooks, or one process",
        )
    # By default a power of two.
    batch_size = settings.train.batch_size or LEAST_IN_BATCH
    if settings.train.parallel == "data" and batch_size % n:
        raise SettingsError(
            f"train.batch_size={batch_size} cannot be shared out evenly to {n} processes",
            hint=f"choose a multiple of {n}, or --set train.parallel=hooks",
        )


def finished_saes(training: Training, activations: list[ActivationsRecord], *, resumes: bool) -> list[Finished]:
    """Train, from a checkpoint if there is one, measure and save. Raises CircuitError if a loss stops being finite.

    What the run holds already counts until all of this is done. Of several processes the main one gets what all have
    made, the others what they know of.
    """
    unfinished = training.unfinished
    finished = _all_known(unfinished) if resumes else None
    if finished is None:
        finished = _train_and_measure(training, activations, resumes=resumes)
    if processes.is_main():
        unfinished.keep_all(finished)
        # From here on a kill is made up for by giving out what is there.
        training.request.run.promote(training.name)
        unfinished.give_out()
        pattern = "*/*" if training.folder.name == SWEEP else "*"
        remove_others(training.request.run, training.folder, finished, pattern=pattern)
    return finished


def _all_known(unfinished: Unfinished) -> list[Finished] | None:
    """What was made before a kill that came at the very end; all processes are told by the main one."""
    known = unfinished.all_known(measured=True) if processes.is_main() else None
    shared = group.share(None if known is None else [vars(one) for one in known])
    return None if shared is None else [Finished(**one) for one in shared]


def _train_and_measure(training: Training, activations: list[ActivationsRecord], *, resumes: bool) -> list[Finished]:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import choose_device
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.memory import check_fits
    from circuitcli.training.trackers.tracker import check_trackers

    request, unfinished = training.request, training.unfinished
    checkpoints = Checkpoints(unfinished.directory, training.digest)
    with changing_nothing():
        cache = ActivationCache(
            request.run.path / ACTIVATIONS, [HookPoint.parse(record.hook) for record in activations]
        )
        plan = training_plan(request.settings, n_rows=cache.n_tokens)
        device = choose_device(request.settings.model.device)
        check_trackers(request.settings.train.log)
        check_fits(
            training.state_bytes,
            device,
            what=f"weights, gradients and moments of SAEs of {training.features} features",
            hint="lower sae.d_sae or sae.expansion, or train fewer hook points at once; --dry-run shows the memory",
        )
    group.start(device)
    if processes.is_main():
        if not resumes:
            unfinished.remove()
        elif not unfinished.is_aside:
            # A kill came while SAEs were given out, and they are to be measured in another way.
            unfinished.give_out()
    group.barrier()
    bench = Bench(request, unfinished, cache, plan)
    try:
        trained = _trained_before(training, checkpoints) if resumes or unfinished.is_aside else None
        mine = _measured_mine(training, bench, checkpoints, device, trained)
        return _in_order(Finished(**one) for part in group.gather([vars(one) for one in mine]) for one in part)
    except BaseException:
        if processes.is_main() and not checkpoints.step() and not unfinished.has_results:
            unfinished.remove()
        raise


def _trained_before(training: Training, checkpoints: "Checkpoints") -> list[Finished] | None:
    """SAEs that need no training but are to be measured in another way; None if there is no such thing."""
    trained: list[Finished] | None = None
    if processes.is_main() and not training.request.force:
        run, unfinished = training.request.run, training.unfinished
        trained = unfinished.all_known(measured=False)
        entry = run.stage(training.name)
        if trained is None and unfinished.is_aside and training.print_.is_of(entry) and not checkpoints.step():
            records = [one for one in run.stage_records(training.name) if isinstance(one, TrainedRecord)]
            trained = [Finished(str(getattr(one, "variant", "")), one.model_dump(exclude_none=True)) for one in records]
    shared = group.share(None if trained is None else [vars(one) for one in trained])
    return None if shared is None else [Finished(**one) for one in shared]


def _measured_mine(
    training: Training,
    bench: Bench,
    checkpoints: "Checkpoints",
    device: "torch.device",
    trained: list[Finished] | None,
) -> list[Finished]:
    """What this process measures of the SAEs, which are trained before unless they are already."""
    if trained is not None:
        return [*measured_again(bench, trained[processes.rank() :: processes.count()], trained)]
    optimisers = _trained(training, bench.cache, bench.plan, checkpoints, device)
    if training.request.settings.train.objective == JOINT:
        _keep_model(training, optimisers)
    for optimiser in optimisers:
        optimiser.free_training_state()
    # Measuring runs the model, whose tensors have other sizes.
    give_back_freed_memory()
    shares_rows = training.request.settings.train.parallel == "data"
    # Processes that shared rows all have all SAEs.
    mine = optimisers[processes.rank() :: processes.count()] if shares_rows else optimisers
    begun_from = {hook: source.digest for hook, source in training.sources.items()}
    return [*measured_coders(bench, mine, training.variants, begun_from)]


def _keep_model(training: Training, optimisers: "list[CoderOptimiser]") -> None:
    """Write the model that learned together with the SAEs, which are measured with it."""
    from circuitcli.models.loading import load_model
    from circuitcli.training.joint import save_model

    directory = joint_model(training.request)
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(optimisers[0], load_model(model_settings(training.request)), partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _in_order(finished: Iterable[Finished]) -> list[Finished]:
    """As one process would have made them: variant after variant, hook points in the order of the model."""
    by_variant: dict[str, list[Finished]] = {}
    for one in finished:
        by_variant.setdefault(one.variant, []).append(one)
    return [one for group in by_variant.values() for one in sorted(group, key=_order)]


def _order(finished: Finished) -> tuple[int, int]:
    return HookPoint.parse(finished.fields["hook"]).order


def _trained(
    training: Training, cache: "ActivationCache", plan: Plan, checkpoints: "Checkpoints", device: "torch.device"
) -> "list[CoderOptimiser]":
    from circuitcli.models.loading import load_model
    from circuitcli.training.job import Job
    from circuitcli.training.trackers.tracker import trackers

    request, unfinished = training.request, training.unfinished
    tracked = request.settings.train.log if processes.is_main() else ()
    with trackers(tracked, _tracked(training, starts_over=not checkpoints.step())) as opened:
        return Job(
            settings=request.settings,
            variants=training.variants,
            cache=cache,
            plan=plan,
            device=device,
            checkpoints=checkpoints,
            model=lambda: load_model(model_settings(request)),
            logs=unfinished.saes,
            trackers=opened,
            is_known=lambda name: unfinished.known(name) is not None,
            starts=training.starts,
        ).trained()


def _tracked(training: Training, *, starts_over: bool) -> "TrackedRun":
    """What trackers are told: a name that belongs to this training of this run directory."""
    from circuitcli.training.trackers.tracker import TrackedRun

    request = training.request
    directory = request.run.path.resolve()
    prefixes = ("model.name", "sae.", "train.", "data.", "seed")
    return TrackedRun(
        directory=request.run.path / LOGS,
        name=f"{directory.name}-{runs.digest([training.digest, str(directory)]).removeprefix('sha256:')[:8]}",
        starts_over=starts_over,
        settings={name: value for name, value in flatten(request.settings).items() if name.startswith(prefixes)},
    )
