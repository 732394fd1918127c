"""``circuit develop``: the checkpoints of a training, each an ordinary run on the same tokens, and their features
matched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from circuitcli import progress
from circuitcli.development.checkpoints import FOLDER, Checkpoint, check_patterns, chosen
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.manifest import digest
from circuitcli.reading import as_path
from circuitcli.records import Record
from circuitcli.runs import Fingerprint
from circuitcli.settings.model import PLACEMENT
from circuitcli.settings.sources import flatten
from circuitcli.stages import checkpoint_run, collect, matching
from circuitcli.stages.checkpoint_run import CheckpointRun
from circuitcli.stages.request import Request, fingerprint, resumable

NAME = "develop"
_READ = ("model.", "data.", "sae.", "train.", "interp.", "develop.", "seed")
# Which checkpoints there are is told by name; the rest changes no result.
_NO_MATTER = (*PLACEMENT, "data.batch_size", "interp.batch_size", "develop.revisions", "develop.crosscoder")


def run(request: Request) -> list[Record]:
    """A record for each checkpoint, made now or before; what was begun goes on at the checkpoint where it stopped.

    Checkpoints that came after a finished run are added to it. Raises InputError for a model without checkpoints, and
    whatever is wrong with one of them, by its name.
    """
    found = found_checkpoints(request)
    request = collect.resolved(request)
    print_ = _fingerprint(request, found)
    # Until there are numbers about all of them, the runs of the checkpoints tell what was made with other settings.
    entry = request.run.stage(NAME)
    outer = replace(request, force=request.force or entry.get("state") != "finished" or _is_more(print_, entry))
    work = lambda _: _work(request, found, print_.digest)  # noqa: E731
    made = resumable(outer, NAME, print_, work, partial=request.run.path / FOLDER, begins=True)
    return [request.run.record(), *made]


def found_checkpoints(request: Request) -> list[Checkpoint]:
    """Those that the settings name. Raises SettingsError for none, and for a single --revision."""
    settings = request.settings
    check_patterns(settings.develop.revisions)
    if settings.model.revision is not None:
        raise SettingsError(
            f"model.revision={settings.model.revision} is one checkpoint", hint="name several with --revisions"
        )
    return chosen(settings.model.name, settings.develop.revisions)


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    found = found_checkpoints(request)
    return checkpoint_run.plan(collect.resolved(request), found)


def _fingerprint(request: Request, found: Sequence[Checkpoint]) -> Fingerprint:
    inputs = {"content of the text": collect.text_digest(request.settings.data)}
    for one in found:
        state = collect.local_state(as_path(one.model)) if one.revision is None else one.revision
        inputs[f"checkpoint {one.name}"] = digest(state)
    return fingerprint(request, _READ, inputs, without=_NO_MATTER)


def _is_more(print_: Fingerprint, entry: dict[str, Any]) -> bool:
    """Whether there are the checkpoints of before, and others, with the same settings."""
    before = entry.get("inputs", {})
    return (
        entry.get("settings") == dict(print_.settings)
        and before != print_.inputs
        and all(print_.inputs.get(name) == value for name, value in before.items())
    )


def _work(request: Request, found: Sequence[Checkpoint], print_: str) -> tuple[list[Record], dict[str, Any]]:
    runs: list[CheckpointRun] = []
    for number, one in enumerate(found):
        with progress.within(f"{one.name} ({number + 1}/{len(found)})"), _naming(one, is_first=number == 0):
            runs.append(checkpoint_run.made(request, one, before=runs[-1] if runs else None))
            _check_aligned(runs[0], runs[-1])
        if number == 0:
            # A mistyped setting, which the first checkpoint tells, leaves the run as it was.
            _describe(request, found)
    records = matching.matched(request, runs, fingerprint=print_)
    return [*(one.record for one in runs), *records], {"checkpoints": [one.name for one in found]}


def _describe(request: Request, found: Sequence[Checkpoint]) -> None:
    """Write into the manifest which model the run belongs to: that of the last checkpoint."""
    settings = checkpoint_run.settings_of(request.settings, found[-1])
    told = {name: value for name, value in flatten(settings).items() if name.startswith("model.")}
    request.run.update_manifest(
        model=request.settings.model.name, revision=None, layers=settings.data.layers, model_settings=told
    )


@contextmanager
def _naming(one: Checkpoint, *, is_first: bool) -> Iterator[None]:
    """Inside, what goes wrong is said to be about this checkpoint."""
    try:
        yield
    except CircuitError as error:
        error.message = f"checkpoint {one.name}: {error.message}"
        error.args = (error.message,)
        error.changed_nothing = error.changed_nothing and is_first
        raise


def _check_aligned(first: CheckpointRun, one: CheckpointRun) -> None:
    """Raise InputError unless the rows of both runs are of the same tokens."""
    told, other = first.record, one.record
    if (told.n_tokens, told.tokens) != (other.n_tokens, other.tokens):
        raise InputError(
            f"its {other.n_tokens:,} tokens are not the {told.n_tokens:,} of {told.name}: another tokenizer",
            hint="leave it out with --revisions",
        )
