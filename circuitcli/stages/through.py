"""What the steps of `circuit develop` behind the coders start from: the runs of the checkpoints, and the prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli import progress
from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, digest_of
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, CheckpointRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.settings.settings import Settings
from circuitcli.stages.checkpoint_run import SEEDS
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder

# Metrics of which each prompt needs a target: the model's own likeliest token is another one at each checkpoint.
_OF_TARGETS = ("log-prob", "logit-diff")


@dataclass(frozen=True, eq=False)
class Moment:
    """A checkpoint with the run that holds its activations and coders; ``request`` is about that run."""

    record: CheckpointRecord
    request: Request

    @property
    def path(self) -> Path:
        """Of its run."""
        return self.request.run.path

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of its coders and activations, by name."""
        saes = {f"SAE at {one.hook}": one.digest for one in self.request.records.of(SaeRecord)}
        return saes | {f"activations at {one.hook}": one.digest for one in self.request.records.of(ActivationsRecord)}

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """Where it has coders, in model order."""
        return tuple(sorted(HookPoint.parse(one.hook) for one in self.request.records.of(SaeRecord)))

    def coder(self, hook: HookPoint) -> "SparseCoder":
        """Its own coder at a hook point."""
        from circuitcli.saes import files

        record = next(one for one in self.request.records.of(SaeRecord) if one.hook == str(hook))
        return files.load(self.path / record.path)

    @cached_property
    def other_seed(self) -> "Moment | None":
        """The same checkpoint with coders of another seed; None where there are none."""
        run = Run(self.path / SEEDS / "1")
        if not run.exists:
            return None
        records = Stream(self.request.records.of(ActivationsRecord)) + run.stream().of(SaeRecord)
        return Moment(self.record, replace(self.request, records=records, run=run))

    def model(self) -> "LanguageModel":
        """The checkpoint's model, loaded."""
        from circuitcli.models.loading import load_model

        return load_model(self.request.settings.model)


def moments(request: Request, settings: Settings | None = None) -> list[Moment]:
    """The checkpoints of a run, by step. Raises InputError for a run that is none of `circuit develop`, or has one."""
    found = [_moment(request, record, settings or request.settings) for record in request.records.of(CheckpointRecord)]
    there = [one for one in found if one.request.run.exists]
    if len(there) < 2:
        raise InputError(
            f"{request.run.path} has too few checkpoints with coders ({len(there)}) to tell what changes",
            hint="run `circuit develop --model DIR --revisions 'step*'`",
        )
    return there


def _moment(request: Request, record: CheckpointRecord, settings: Settings) -> Moment:
    run = Run(request.run.path / record.path)
    name = settings.model.name if record.model is None else record.model
    model = settings.model.model_copy(update={"name": name, "revision": record.revision})
    own = settings.model_copy(update={"model": model, "sae_path": None})
    return Moment(record, Request(own, run.stream() if run.exists else Stream(), run, request.force))


def has_prompts(settings: Settings) -> bool:
    """Whether a behaviour is named."""
    graph = settings.graph
    return bool(graph.prompts or graph.prompt or graph.prompt_ids)


def check(settings: Settings) -> None:
    """Raise SettingsError or InputError for prompts that cannot be followed through training, before anything is
    made."""
    if has_prompts(settings):
        asked(settings)


def asked(settings: Settings) -> tuple[Example, ...]:
    """The prompts of the behaviour that is followed.

    Raises SettingsError without a prompt, for a metric that has no value at the clean run, and where a prompt lacks a
    target: each checkpoint would be asked about another token.
    """
    graph = settings.graph
    if graph.metric == "kl":
        raise SettingsError(
            "the divergence from the clean run is 0 at every checkpoint, so it tells of no behaviour through training",
            hint="use --metric log-prob, logit-diff or cross-entropy",
        )
    examples = asked_examples(graph, left_out=LeftOut(allowed=graph.skip_bad))
    if examples is None:
        raise SettingsError("no behaviour is named", hint="add --prompts FILE, or --prompt TEXT --target TOKEN")
    if graph.metric in _OF_TARGETS and (lacking := [one for one in examples if one.target is None]):
        raise SettingsError(
            f"the prompt {lacking[0].prompt[-40:]!r} has no target, and the likeliest token is another one at each "
            "checkpoint",
            hint="add --target TOKEN, or a target to each prompt of the file",
        )
    return examples[: graph.n_prompts]


def asked_digest(settings: Settings) -> str:
    """Of the prompts."""
    return digest_of(asked(settings))


def encoded(moment: Moment, examples: Sequence[Example], model: "LanguageModel") -> "tuple[Prompt, ...]":
    """The prompts in the tokens of a checkpoint's model."""
    from circuitcli.attribution.prompts import Needs, encode_all

    graph = moment.request.settings.graph
    needs = Needs.of(metric=graph.metric, baseline="zero", spans=False)
    left_out = LeftOut(allowed=graph.skip_bad)
    return encode_all(examples, model.tokenizer, model.adapter, needs=needs, left_out=left_out, most=graph.n_prompts)


@contextmanager
def at(number: int, found: Sequence[Moment]) -> Iterator[Moment]:
    """Inside, progress and errors are said to be about this checkpoint."""
    name = found[number].record.name
    try:
        with progress.within(f"{name} ({number + 1}/{len(found)})"):
            yield found[number]
    except CircuitError as error:
        error.message = f"checkpoint {name}: {error.message}"
        error.args = (error.message,)
        raise


def digests(found: Sequence[Moment]) -> dict[str, str]:
    """Of all that the checkpoints hold, by name."""
    every: Mapping[str, Moment] = {one.record.name: one for one in found}
    return {f"{name}: {what}": told for name, one in every.items() for what, told in one.digests.items()}
