"""The end of a training: each SAE is measured, saved and judged, one after the other, and none twice after a kill."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import progress
from circuitcli.errors import InputError
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.hookpoints import HookPoint
from circuitcli.records import TrainedRecord
from circuitcli.saes.folder import is_recorded, read_config
from circuitcli.stages.measure import held_out, joint_model
from circuitcli.stages.request import Request
from circuitcli.stages.unfinished import Finished, Unfinished
from circuitcli.training.plan import JOINT, Plan, training_plan

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseCoder
    from circuitcli.settings.settings import Settings
    from circuitcli.training.optimiser import CoderOptimiser

# What training alone can tell of an SAE.
_OF_TRAINING = (
    "trained_as",
    "dead",
    "dead_tokens",
    "trained_tokens",
    "kept_tokens",
    "learning_rate",
    "model",
    "seed",
    "begun_from",
    "chunk_features",
)
_SCORES = ("explained_variance", "l0", "loss_recovered", "dead")
_PER_CHUNK = "l0_per_chunk"
MOST = 0.5


@dataclass(frozen=True)
class Bench:
    """Where SAEs are measured: the rows that training left out, and what is kept of the results."""

    request: Request
    unfinished: Unfinished
    cache: "ActivationCache"
    plan: Plan

    def held_out(self) -> HeldOut:
        """The rows, and the model, which this loads."""
        return held_out(self.request, self.cache, self.plan.held_out_rows)

    def saved(
        self,
        held_out: HeldOut,
        name: str,
        sae: "SparseCoder",
        trained: "Trained",
        measured: Mapping[str, Any] | None = None,
    ) -> Finished:
        """Measure an SAE, write its files and remember the result.

        measured: what was measured of it together with others.
        """
        from circuitcli.saes import files

        chunk = trained.facts.get("chunk_features")
        measured = held_out.facts(sae.to(held_out.device), chunk=chunk) if measured is None else measured
        facts = finite({**measured, **trained.facts})
        digest = files.save(sae, self.unfinished.saes / name, **facts)
        path = self.unfinished.folder / name
        finished = Finished(trained.variant, _fields(sae, facts, path=path.as_posix(), digest=digest))
        self.unfinished.keep(name, finished)
        return finished


@dataclass(frozen=True)
class Trained:
    """What training tells of an SAE."""

    variant: str
    facts: Mapping[str, Any]


def measured_coders(
    bench: Bench,
    optimisers: "Sequence[CoderOptimiser]",
    variants: "Mapping[str, Settings]",
    begun_from: Mapping[HookPoint, str],
) -> Iterator[Finished]:
    """Measure the SAEs of optimisers that have learned, but for those that were measured before a kill.

    begun_from: digests of the coders that they began from.
    """
    known = {
        name: measured
        for optimiser in optimisers
        for hook in optimiser.trainable.sae_hooks
        if (measured := bench.unfinished.known(name := optimiser.name_of(hook))) is not None
    }
    yield from known.values()
    left = [one for one in optimisers if any(one.name_of(hook) not in known for hook in one.trainable.sae_hooks)]
    if not left:
        return
    held_out = bench.held_out()
    for optimiser in progress.track(left, "measure", unit="SAEs"):
        coders = optimiser.finished()
        together = measured_together(held_out, coders)
        for sae in coders.values():
            if (name := optimiser.name_of(sae.hook)) not in known:
                settings = variants[optimiser.variant]
                facts = _training_facts(optimiser, sae, settings, bench)
                facts |= {"begun_from": begun_from[sae.hook]} if sae.hook in begun_from else {}
                chunk = optimiser.trainable.chunk_of(sae.hook)
                facts |= {} if chunk is None else {"chunk_features": chunk}
                yield bench.saved(held_out, name, sae, Trained(optimiser.variant, facts), together.get(sae.hook))


def measured_together(
    held_out: HeldOut, coders: "Mapping[HookPoint, SparseCoder]"
) -> "Mapping[HookPoint, Mapping[str, Any]]":
    """What is measured of all these coders at once, by what they read; nothing where each reads and writes alone."""
    from circuitcli.saes.crosscoder import Crosscoder

    crosscoders = {hook: coder for hook, coder in coders.items() if isinstance(coder, Crosscoder)}
    if crosscoders:
        return {hook: held_out.facts_of_crosscoder(one.to(held_out.device)) for hook, one in crosscoders.items()}
    if not any(len(coder.writes) > 1 for coder in coders.values()):
        return {}
    return held_out.facts_together({hook: coder.to(held_out.device) for hook, coder in coders.items()})


def _training_facts(
    optimiser: "CoderOptimiser", sae: "SparseCoder", settings: "Settings", bench: Bench
) -> dict[str, Any]:
    plan, request = bench.plan, bench.request
    return {
        "trained_as": settings.sae.architecture,
        "dead": optimiser.trainable.dead_share(sae.hook),
        "dead_tokens": training_plan(settings, n_rows=plan.n_rows).dead_tokens,
        "trained_tokens": plan.tokens,
        "kept_tokens": (optimiser.best.step or plan.n_steps) * plan.batch_size,
        "learning_rate": optimiser.config.schedule.peak,
        "model": _model(request),
        "seed": settings.seed,
    }


def _model(request: Request) -> str:
    """The model that SAEs belong to."""
    if request.settings.train.objective == JOINT:
        return str(joint_model(request).absolute())
    return str(request.run.manifest().get("model", request.settings.model.name))


def measured_again(bench: Bench, mine: Iterable[Finished], trained: Sequence[Finished]) -> Iterator[Finished]:
    """Measure SAEs that were trained before, which are already saved, by other settings.

    mine: of all that were trained, those that this process measures. Raises InputError for one that is not what was
    recorded.
    """
    names = {Path(one.path).relative_to(bench.unfinished.folder).as_posix(): one for one in mine}
    known = {name: measured for name in names if (measured := bench.unfinished.known(name)) is not None}
    yield from known.values()
    left = [name for name in names if name not in known]
    if not left:
        return
    held_out = bench.held_out()
    together: dict[str, Mapping[HookPoint, Mapping[str, Any]]] = {}
    for name in progress.track(left, "measure", unit="SAEs"):
        before = names[name]
        coder = _loaded(bench, before)
        if before.variant not in together:
            # Coders of one variant are of one architecture: all of them write together, or each alone.
            peers = [one for one in trained if one.variant == before.variant]
            is_set = any({"further", "hooks"} & one.fields.keys() for one in peers)
            coders = {peer.hook: peer for peer in (_loaded(bench, one) for one in peers)} if is_set else {}
            together[before.variant] = measured_together(held_out, coders)
        config = read_config(bench.request.run.path / before.path)
        facts = {name: config[name] for name in _OF_TRAINING if name in config}
        trained_before = Trained(before.variant, facts)
        yield bench.saved(held_out, name, coder, trained_before, together[before.variant].get(coder.hook))


def _loaded(bench: Bench, before: Finished) -> "SparseCoder":
    from circuitcli.saes import files

    directory = bench.request.run.path / before.path
    if not is_recorded(directory, str(before.fields["digest"])):
        raise InputError(f"the SAE in {directory} is not the one that was recorded", hint="train again with --force")
    return files.load(directory)


def _fields(sae: "SparseCoder", facts: Mapping[str, Any], *, path: str, digest: str) -> dict[str, Any]:
    """What records tell of an SAE."""
    target: dict[str, Any] = {"target": str(sae.target)} if sae.is_transcoder else {}
    if sae.config.further:
        target["further"] = [str(hook) for hook in sae.config.further]
    shape = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, **sae.options}
    scores = {name: facts.get(name) for name in _SCORES}
    scores |= {_PER_CHUNK: facts[_PER_CHUNK]} if _PER_CHUNK in facts else {}
    warning = {"problems": wrong} if (wrong := problems(facts)) else {}
    return {"hook": str(sae.hook), **target, **shape, "path": path, "digest": digest, **scores, **warning}


def problems(facts: Mapping[str, Any]) -> list[str]:
    """What tells that a training came to nothing; empty if nothing does."""
    explained, dead = facts.get("explained_variance"), facts.get("dead")
    wrong = []
    if explained is None or not math.isfinite(explained):
        wrong.append("the training diverged: the variance that it explains is not a number")
    elif explained < 0:
        wrong.append(f"the training diverged: it explains {explained:.3g} of the variance, less than a constant does")
    if dead is not None and dead > MOST:
        wrong.append(f"{dead:.0%} of the features are dead")
    return wrong


def warnings(records: Iterable[TrainedRecord]) -> list[str]:
    """A line for each SAE whose training came to nothing, with what to try."""
    lines = []
    for record in records:
        if record.problems:
            name = record.path.rpartition("saes/")[2]
            lower = any("diverged" in problem for problem in record.problems)
            advice = (
                "a lower train.learning_rate"
                if lower
                else "more --tokens, fewer features or a larger train.auxk_weight"
            )
            lines.append(f"{name}: {'; '.join(record.problems)}; try {advice}, with --force")
    return lines


def finite(content: Any) -> Any:
    """The same without numbers that JSON cannot hold."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
