"""One checkpoint of a training as a run directory of its own: RUN/checkpoints/NAME, made by the stages `collect` and
`train`; coders of further seeds are in RUN/checkpoints/NAME/seeds/N, on the same activations."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.development.checkpoints import FOLDER, Checkpoint
from circuitcli.errors import InputError
from circuitcli.features.lines import first_lines
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.manifest import digest
from circuitcli.records import ActivationsRecord, CheckpointRecord, FeaturesRecord, Record, Stream
from circuitcli.runs import Run
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, interp, train
from circuitcli.stages.estimates import size
from circuitcli.stages.request import Request
from circuitcli.stages.storing import USUAL

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter

SEEDS = "seeds"


@dataclass(frozen=True)
class CheckpointRun:
    """A checkpoint whose activations and coders are there. ``coders``: one stream of records for each seed, by the
    folder of its run, the first of them the checkpoint's own."""

    checkpoint: Checkpoint
    record: CheckpointRecord
    coders: dict[Path, Stream]

    @property
    def own(self) -> Stream:
        """The records of the checkpoint's own run."""
        return next(iter(self.coders.values()))

    def labels(self, hook: HookPoint) -> dict[int, str]:
        """Labels of features at a hook point, by number; none where they were not described."""
        path = next(iter(self.coders))
        described = [record for record in self.own.of(FeaturesRecord) if record.hook == str(hook)]
        lines = first_lines(path / described[-1].path, described[-1].n_live) if described else ()
        return {NodeId.parse(line.id).index or 0: line.label for line in lines}


def made(request: Request, one: Checkpoint, *, before: CheckpointRun | None) -> CheckpointRun:
    """The run of a checkpoint, made now or before. Raises what `collect` and `train` do."""
    own = request_of(request, one)
    collected = of_stage(collect.run, own)
    records = Stream(collected)
    coders: dict[Path, Stream] = {}
    for number in range(n_seeds(request.settings, one)):
        asked = replace(own, records=records) if number == 0 else _of_seed(own, one, records, number=number)
        asked = replace(asked, settings=_starting(asked.settings, request, before, number=number))
        coders[asked.run.path] = records + of_stage(train.run, asked)
        if number == 0 and request.settings.develop.interp:
            coders[asked.run.path] += of_stage(interp.run, replace(asked, records=coders[asked.run.path]))
    return CheckpointRun(one, _record(request, own, one, records), coders)


def request_of(request: Request, one: Checkpoint) -> Request:
    """The request about a checkpoint's own run."""
    run = Run(request.run.path / FOLDER / one.name)
    return Request(settings_of(request.settings, one), run.stream() if run.exists else Stream(), run, request.force)


def settings_of(settings: Settings, one: Checkpoint, *, number: int = 0) -> Settings:
    """The settings with the checkpoint's model, and the seed with this number there."""
    model = settings.model.model_copy(update={"name": one.model, "revision": one.revision})
    return settings.model_copy(update={"model": model, "seed": seed_of(settings, one, number=number)})


def seed_of(settings: Settings, one: Checkpoint, *, number: int) -> int:
    """A seed that no other checkpoint and no other number have, whichever others there are; unless all begin alike."""
    if settings.develop.start == "same-seed":
        return (settings.seed + number) % 2**32
    text = f"{settings.seed} {one.name} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def n_seeds(settings: Settings, one: Checkpoint) -> int:
    """How many coders are trained at a checkpoint."""
    has_several = any(fnmatchcase(one.name, pattern) for pattern in settings.develop.seeds_at)
    return settings.develop.seeds if has_several else 1


def of_stage(stage: Callable[[Request], list[Record]], request: Request) -> list[Record]:
    """What a stage makes in the run of a checkpoint. With force only what was made with other settings is made again:
    the rest would come out the same."""
    try:
        return stage(replace(request, force=False))
    except InputError:
        if not request.force:
            raise
        return stage(request)


def _of_seed(own: Request, one: Checkpoint, records: Stream, *, number: int) -> Request:
    """A request about the run of another seed, which has the checkpoint's activations."""
    path = own.run.path / SEEDS / str(number)
    path.mkdir(parents=True, exist_ok=True)
    link = path / collect.FOLDER
    if not link.is_symlink():
        link.symlink_to(Path("..") / ".." / collect.FOLDER, target_is_directory=True)
    run = Run(path)
    told = ("model", "revision", "layers", "model_settings", "n_layers", "d_model")
    manifest = own.run.manifest()
    if not run.exists:
        run.update_manifest(**{name: manifest[name] for name in told if name in manifest})
    seed = seed_of(own.settings, one, number=number)
    return Request(own.settings.model_copy(update={"seed": seed}), records, run, own.force)


def _starting(settings: Settings, request: Request, before: CheckpointRun | None, *, number: int) -> Settings:
    """The settings with the coders of the checkpoint before to begin with, if that is asked for and there are any."""
    paths = [] if before is None else list(before.coders)
    if request.settings.develop.start != "before" or number >= len(paths):
        return settings
    start = str(paths[number] / train.FOLDER)
    return settings.model_copy(update={"train": settings.train.model_copy(update={"start": start})})


def _record(request: Request, own: Request, one: Checkpoint, records: Stream) -> CheckpointRecord:
    from circuitcli.activations.cache import ActivationCache

    collected = records.of(ActivationsRecord)
    cache = ActivationCache(own.run.path / collect.FOLDER, [])
    return CheckpointRecord(
        name=one.name,
        step=one.step,
        path=own.run.path.relative_to(request.run.path).as_posix(),
        model=one.model,
        revision=one.revision,
        hooks=tuple(record.hook for record in collected),
        n_tokens=cache.n_tokens,
        tokens=digest(cache.token_digests),
    )


def plan(request: Request, found: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """What is made at all checkpoints, as (name, value) for people; the first one stands for the shape of all."""
    from circuitcli.activations.source import chosen_hooks
    from circuitcli.models.loading import load_outline

    own = request_of(request, found[0])
    adapter = load_outline(own.settings.model)
    hooks = chosen_hooks(own.settings.data, adapter)
    collected = dict(collect.plan(own))
    trained = train.plan(replace(own, records=_outlined(own.settings, hooks, adapter)))
    n_bytes = collect.disk_bytes(own.settings, n_hooks=len(hooks), d_model=adapter.d_model)
    n_coders = sum(n_seeds(request.settings, one) for one in found) * len(hooks)
    return [
        ("checkpoints", f"{len(found)}: {' '.join(one.name for one in found)}"),
        ("text", collected["text"]),
        ("tokens", f"{collected['tokens']} at each, {own.settings.data.tokens * len(found):,} in all"),
        ("hook points", collected["hook points"]),
        ("disk", f"{size(n_bytes)} of activations at each; all: {collect.disk_line(request, n_bytes * len(found))}"),
        ("in all", f"{n_coders} coders, {len(found)} passes over the text"),
        *((f"each: {name}", value) for name, value in trained),
    ]


def _outlined(settings: Settings, hooks: Sequence[HookPoint], adapter: "ModelAdapter") -> Stream:
    """Records of activations that are not there yet."""
    return Stream(
        ActivationsRecord(
            hook=str(hook),
            path=f"{collect.FOLDER}/{hook}",
            n_tokens=settings.data.tokens,
            d_model=adapter.d_model,
            dtype=USUAL,
            digest="",
        )
        for hook in hooks
    )
