"""``circuit develop --crosscoder``: one set of features for all checkpoints, at each hook point."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import CrosscoderRecord, Record
from circuitcli.render.through import crosscoder_plot
from circuitcli.runs import atomic
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.figures import drawn
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.through import Moment, asked, asked_digest, at, digests, encoded, has_prompts, moments
from circuitcli.training.plan import training_plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from circuitcli.activations.aligned import AlignedCache
    from circuitcli.development.crosscoder import Crosscoding
    from circuitcli.development.effects import Read
    from circuitcli.development.losses import CheckpointLoss
    from circuitcli.development.turning import Life
    from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder

NAME, FOLDER = "crosscoder", "crosscoder"
_READ = ("sae.", "train.", "seed")
# What a behaviour is, where effects on it are asked for.
_BEHAVIOUR = ("graph.metric", "graph.n_prompts", "graph.skip_bad")
_NO_MATTER = (*PLACEMENT, "train.log", "train.checkpoint_tokens", "train.parallel", "train.tf32", "train.sweep")
# Features whose effects are held against ablations: so many with the largest effects at any checkpoint.
CHECKED = 12


def run(request: Request) -> list[Record]:
    """A record for each hook point, trained now or before; what was begun goes on where it stopped.

    With prompts the features' indirect effects on them are taken too. Raises SettingsError for what a crosscoder
    cannot be trained with, InputError for a run of fewer than two checkpoints.
    """
    found = moments(request)
    settings = request.settings
    if settings.train.objective != "local":
        raise SettingsError(
            "a crosscoder over checkpoints learns from activations, not end to end",
            hint="leave out train.objective=end-to-end, or --crosscoder",
        )
    takes_effects, inputs = has_prompts(settings), digests(found)
    if takes_effects:
        inputs["prompts"] = asked_digest(settings)
    read = (*_READ, *_BEHAVIOUR) if takes_effects else _READ
    print_ = fingerprint(request, read, inputs, without=_NO_MATTER)
    folder = request.run.path / FOLDER / "partial"
    made = resumable(
        request,
        NAME,
        print_,
        lambda resumes: _work(_Task(request, found, folder, print_.digest, takes_effects), resumes),
        partial=folder,
        clean=lambda: shutil.rmtree(folder, ignore_errors=True),
    )
    return made


@dataclass(frozen=True)
class _Task:
    request: Request
    found: Sequence[Moment]
    folder: Path
    digest: str
    takes_effects: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of the checkpoints."""
        return tuple(one.record.name for one in self.found)


def _work(task: _Task, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    if not resumes:
        shutil.rmtree(task.folder, ignore_errors=True)
    with Ledger(task.folder / "measured.jsonl", task.digest, resumes=resumes) as ledger:
        kept = [ledger.keep(str(hook), partial(_fields, task, hook)) for hook in task.found[0].hooks]
    records = [CrosscoderRecord(**told) for told in kept]
    figures = [
        one for record in records for one in drawn(task.request.run, f"{NAME}-{record.hook}", crosscoder_plot(record))
    ]
    return [*records, *figures], {"checkpoints": list(task.names)}


def _fields(task: _Task, hook: HookPoint) -> dict[str, Any]:
    return _record(task, hook).model_dump(exclude_none=True)


def _record(task: _Task, hook: HookPoint) -> CrosscoderRecord:
    from circuitcli.activations.aligned import AlignedCache
    from circuitcli.development.crosscoder import Crosscoding
    from circuitcli.models.loading import choose_device
    from circuitcli.saes import files

    settings = task.request.settings
    cache = AlignedCache([one.path / "activations" for one in task.found], hook)
    device = choose_device(settings.model.device)
    job = Crosscoding(cache, task.names, settings, task.folder / str(hook), task.digest, device)
    coder, dead = job.trained()
    facts = _facts(task, job, coder, dead=dead)
    path = f"{FOLDER}/{hook}"
    digest = files.save(coder, task.request.run.path / path, explained_variance=_mean(facts["explained_variance"]))
    job.forget()
    return CrosscoderRecord(
        hook=str(hook),
        checkpoints=task.names,
        steps=tuple(one.record.step for one in task.found),
        d_in=coder.d_in,
        d_sae=coder.d_sae,
        path=path,
        digest=digest,
        dead=dead,
        **facts,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _facts(task: _Task, job: "Crosscoding", coder: "CheckpointCrosscoder", *, dead: float) -> dict[str, Any]:
    from circuitcli.development import turning
    from circuitcli.development.losses import loss_table

    quality, densities = job.quality(coder), job.densities(coder)
    live = densities > 0
    norms = coder.decoder_norms().cpu()[:, live]
    shares, lives = turning.relative(norms), turning.lives(norms, coder.decoders().cpu()[:, live])
    counts = turning.turns(lives, n_checkpoints=len(task.found))
    facts: dict[str, Any] = {
        "l0": quality[0].l0,
        "n_live": int(live.sum()),
        "explained_variance": [one.explained_variance for one in quality],
        "kinds": {name: float(count) for name, count in counts.kinds.items()},
        "born": counts.born,
        "died": counts.died,
        "turned": counts.turned,
        "staying": counts.staying,
        "reldec": shares.mean(dim=1).tolist() if int(live.sum()) else [0.0] * len(task.found),
        "histograms": turning.histograms(shares),
        "two_ended": turning.histograms(turning.first_against_last(norms)[None])[0],
    }
    losses, reads = _read(task, job.cache, coder)
    if losses:
        facts |= {"unit": "nats", **loss_table(losses)}
    effects = None
    if reads:
        effects, told = _effects(task, coder, reads)
        facts |= told | {"relie": turning.relative(effects[:, live]).mean(dim=1).tolist()}
        effects = effects[:, live]
    facts["table"] = _table(task, coder, live, densities[live], shares, lives, effects)
    return facts


def _read(
    task: _Task, cache: "AlignedCache", coder: "CheckpointCrosscoder"
) -> "tuple[list[CheckpointLoss], list[list[Read]]]":
    """Of each checkpoint, whose model is loaded once: its losses on the held-out text that SAEs are measured on, none
    without text; and what it does on the prompts, nothing without prompts."""
    from circuitcli.development.effects import by_length, read
    from circuitcli.development.losses import HeldOutText

    settings = task.request.settings
    rows = training_plan(settings, n_rows=cache.n_tokens).held_out_rows[: settings.train.loss_tokens]
    text = HeldOutText.of(cache, coder.cpu(), rows)
    examples, metric = asked(settings) if task.takes_effects else (), settings.graph.metric
    losses, reads = [], []
    for number in range(len(task.found)):
        with at(number, task.found) as moment:
            model = moment.model()
            if text.blocks:
                losses.append(text.loss(model.adapter, number, pad_id=model.tokenizer.pad_id))
            if examples:
                batches = by_length(encoded(moment, examples, model))
                reads.append([read(model.adapter, coder.hook, batch, metric=metric) for batch in batches])
    return losses, reads


def _effects(
    task: _Task, coder: "CheckpointCrosscoder", reads: "Sequence[Sequence[Read]]"
) -> "tuple[Tensor, dict[str, Any]]":
    """Mean indirect effects, (checkpoint, d_sae), and what is told of them."""
    from circuitcli.development.effects import indirect_effects

    placed = coder.to(reads[0][0].activation.device)
    of_prompts = indirect_effects(placed, reads)
    effects = of_prompts.mean(dim=1).cpu()
    agreement = _agreement(task, placed, reads, effects)
    told = {"metric": task.request.settings.graph.metric, "n_prompts": of_prompts.shape[1], "agreement": agreement}
    return effects, told


def _agreement(
    task: _Task, coder: "CheckpointCrosscoder", reads: "Sequence[Sequence[Read]]", effects: "Tensor"
) -> list[float | None]:
    """The correlation, at each checkpoint, of effects with what ablating features there loses."""
    import torch

    from circuitcli.development.effects import ablated, by_length

    examples, metric = asked(task.request.settings), task.request.settings.graph.metric
    features = effects.abs().amax(dim=0).topk(min(CHECKED, coder.d_sae)).indices.tolist()
    found: list[float | None] = []
    for number in range(len(task.found)):
        with at(number, task.found) as moment:
            model = moment.model()
            batches = by_length(encoded(moment, examples, model))
            lost = [
                ablated(model.adapter, coder, of_batch, batch, features, number=number, metric=metric)
                for of_batch, batch in zip(zip(*reads, strict=True), batches, strict=True)
            ]
        means = torch.cat(lost, dim=1).mean(dim=1)
        pair = torch.stack([effects[number, features].double(), means.cpu().double()])
        found.append(float(pair.corrcoef()[0, 1]) if bool((pair.std(dim=1) > 0).all()) else None)
    return found


def _table(
    task: _Task,
    coder: "CheckpointCrosscoder",
    live: "torch.Tensor",
    densities: "torch.Tensor",
    shares: "torch.Tensor",
    lives: "Sequence[Life]",
    effects: "torch.Tensor | None",
) -> str:
    """A CSV with a line for each live feature; returns its path below the run."""
    from circuitcli.development.turning import relative

    path, n = f"reports/crosscoder-{coder.hook}.csv", len(task.found)
    head = ["feature", "kind", "first", "last", "cosine", "density", *(f"reldec_{name}" for name in task.names)]
    columns = [shares]
    if effects is not None:
        head += [f"ie_{name}" for name in task.names] + [f"relie_{name}" for name in task.names]
        columns += [effects, relative(effects)]
    with atomic(task.request.run.path / path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        for place, feature in enumerate(live.nonzero()[:, 0].tolist()):
            life = lives[place]
            about = [feature, life.kind(n), task.names[life.first], task.names[life.last]]
            numbers = [life.cosine, float(densities[place]), *(float(v) for one in columns for v in one[:, place])]
            writer.writerow([*about, *(f"{number:.6g}" for number in numbers)])
    return path
