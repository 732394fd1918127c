"""``circuit pretrain``: a small language model, from a text to a Hugging Face directory."""

import shutil
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from circuitcli import group, processes, runs
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.manifest import Fingerprint
from circuitcli.pretraining.tokenizer_files import is_file, tokenizer_files
from circuitcli.reading import as_path
from circuitcli.records import CheckpointRecord, ModelRecord, Record
from circuitcli.runs import Run
from circuitcli.settings.data import BUILTIN_TEXT
from circuitcli.settings.pretrain import NO_MATTER, checkpoint_steps
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten
from circuitcli.stages.estimates import BYTES, memory, size
from circuitcli.stages.request import Request, changing_nothing, fingerprint, resumable
from circuitcli.text.documents import check_field, source_digest

if TYPE_CHECKING:
    from circuitcli.pretraining.export import Quality
    from circuitcli.pretraining.job import Job
    from circuitcli.training.trackers.tracker import TrackedRun

NAME = "pretrain"
# Below the directory of the model: the run of its training, and in it what the training goes on from.
FOLDER, STATES, LOGS = "training", "state", "logs"
# What a number that is learned takes beside itself: its gradient and AdamW's two moments.
_STATE_COPIES = 4


def run_of(settings: Settings) -> Run:
    """The run of a training, in the directory of its model. Raises SettingsError if none is named."""
    output = settings.pretrain.output
    if output is None:
        raise SettingsError("pretrain has nowhere to write the model", hint="name a directory with --output DIR")
    return Run(as_path(output) / FOLDER, option="--output")


def run(request: Request) -> list[Record]:
    """The record of the model and one for each checkpoint, trained now or before.

    Raises InputError for a text that is too short and for a directory that holds another model, unless ``force`` is
    set; SettingsError for settings that make no sense; CircuitError if the loss stops being finite.
    """
    check(request.settings)
    _check_output(request)
    inputs = {"content of the text": source_digest(_source(request), field=request.settings.data.field)}
    if is_file(request.settings.pretrain):
        inputs["tokenizer"] = _tokenizer_digest(request.settings)
    print_ = fingerprint(request, ("pretrain.", "data.field", "seed"), inputs, without=NO_MATTER)
    states = request.run.path / STATES
    try:
        made = resumable(
            request,
            NAME,
            print_,
            partial(_work, request, print_),
            partial=states,
            begins=True,
            clean=lambda: shutil.rmtree(states, ignore_errors=True),
        )
    except CircuitError:
        # Of what came to nothing no folder stays.
        with suppress(OSError):
            as_path(_output(request)).rmdir()
        raise
    # Whoever asks again may name the directory in another way.
    return [one.model_copy(update={"path": _output(request)}) if isinstance(one, ModelRecord) else one for one in made]


def check(settings: Settings) -> None:
    """Raise SettingsError for what no training can be made of, and InputError for a tokenizer that is not there."""
    run_of(settings)
    settings.pretrain.check()
    if is_file(settings.pretrain):
        tokenizer_files(settings.pretrain)
    if settings.data.text == "-":
        raise SettingsError("pretrain reads its text several times", hint="save it to a file: --text FILE")
    if settings.data.chat:
        raise SettingsError("--chat does not apply to pretrain, which reads plain text", hint="leave out data.chat")
    check_field(settings.data.text or BUILTIN_TEXT, settings.data.field)
    n = processes.count()
    if settings.pretrain.batch_size % n:
        raise SettingsError(
            f"pretrain.batch_size={settings.pretrain.batch_size} cannot be shared out evenly to {n} processes",
            hint=f"choose a multiple of {n}",
        )


def _source(request: Request) -> str:
    return request.settings.data.text or BUILTIN_TEXT


def _output(request: Request) -> str:
    return str(request.settings.pretrain.output)


def _check_output(request: Request) -> None:
    """Raise InputError if the directory holds a model of which nobody knows how it was trained."""
    output = as_path(_output(request))
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file", hint="name a directory with --output DIR")
    if Run(output).exists:
        raise InputError(f"{output} is a run, not the directory of a model", hint="choose another --output")
    known = request.run.exists
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json")
    found = next((name for name in names if (output / name).exists()), None)
    if found and not known and not request.force:
        raise InputError(
            f"{output} holds another model: {found}", hint="choose another --output, or replace it with --force"
        )


def _tokenizer_digest(settings: Settings) -> str:
    return runs.digest([runs.file_digest(path) for path in tokenizer_files(settings.pretrain)])


def _work(request: Request, print_: Fingerprint, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.training.trackers.tracker import trackers

    with changing_nothing():
        job = _job(request, print_, kept=resumes)
    group.start(job.device)
    if processes.is_main() and not resumes:
        _clear(request)
    group.barrier()
    tracked = request.settings.pretrain.log if processes.is_main() else ()
    with trackers(tracked, _tracked(request, print_, starts_over=not job.states.step())) as opened:
        quality = job.with_trackers(opened).finished()
    if quality is None:
        return [], {}
    return _records(request, job, quality), {"n_tokens": quality.n_tokens_seen}


def _job(request: Request, print_: Fingerprint, *, kept: bool) -> "Job":
    from circuitcli.models.loading import choose_device
    from circuitcli.pretraining.batches import Windows
    from circuitcli.pretraining.job import TOKENIZER, Job, read_text
    from circuitcli.training.checkpoint import Checkpoints
    from circuitcli.training.trackers.tracker import check_trackers

    settings, folder = request.settings, request.run.path
    device = choose_device(settings.model.device)
    check_trackers(settings.pretrain.log)
    text = read_text(settings, kept=folder / TOKENIZER if kept else None)
    windows = Windows(text.corpus, settings.pretrain, seed=settings.seed)
    states = Checkpoints(folder / STATES, print_.digest)
    return Job(settings, text, windows, device, as_path(_output(request)), folder, states)


def _clear(request: Request) -> None:
    """Remove what a training with other settings left, which is to be replaced."""
    output = as_path(_output(request))
    for folder in (request.run.path / STATES, output / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)


def _records(request: Request, job: "Job", quality: "Quality") -> list[Record]:
    from circuitcli.pretraining.export import WEIGHTS
    from circuitcli.pretraining.trainer import CHECKPOINTS, folder_of, losses_at

    settings, output = request.settings, as_path(_output(request))
    pretrain = settings.pretrain
    losses = losses_at(request.run.path)
    made: list[Record] = [
        CheckpointRecord(
            name=folder_of(step),
            step=step,
            path=f"{CHECKPOINTS}/{folder_of(step)}",
            validation_loss=losses.get(step),
            unit="nats",
        )
        for step in checkpoint_steps(pretrain.checkpoints, n_steps=pretrain.steps)
    ]
    model = ModelRecord(
        path=str(output),
        unit="nats",
        step=pretrain.steps,
        digest=runs.file_digest(output / WEIGHTS),
        text=_source(request),
        field=settings.data.field,
        **vars(quality),
    )
    return [model, *made]


def _tracked(request: Request, print_: Fingerprint, *, starts_over: bool) -> "TrackedRun":
    """What trackers are told: a name that belongs to this training in this directory."""
    from circuitcli.training.trackers.tracker import TrackedRun

    directory = as_path(_output(request)).resolve()
    prefixes = ("pretrain.", "data.text", "data.field", "seed")
    return TrackedRun(
        directory=request.run.path / LOGS,
        name=f"{directory.name}-{runs.digest([print_.digest, str(directory)]).removeprefix('sha256:')[:8]}",
        starts_over=starts_over,
        settings={name: value for name, value in flatten(request.settings).items() if name.startswith(prefixes)},
    )


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people. Reads the text, and takes two steps to see how long one is."""
    check(request.settings)
    _check_output(request)
    job = _job(request, Fingerprint({}, {}), kept=False)
    pretrain, corpus = request.settings.pretrain, job.text.corpus
    optimiser = job.optimiser()
    n_parameters = sum(parameter.numel() for parameter in optimiser.model.parameters())
    n_tokens = pretrain.steps * pretrain.batch_size * pretrain.accumulation * pretrain.context_length
    seconds = _seconds_of_a_step(job)
    kept = checkpoint_steps(pretrain.checkpoints, n_steps=pretrain.steps)
    stored = n_parameters * BYTES[pretrain.dtype]
    logits = 3 * 4 * pretrain.batch_size * pretrain.context_length * corpus.n_ids
    blocks = 4 * 24 * pretrain.batch_size * pretrain.context_length * pretrain.d_model * pretrain.n_layers
    return [
        ("text", f"{_source(request)}: {len(corpus.training):,} tokens, {len(corpus.validation):,} held out"),
        ("tokenizer", f"{pretrain.tokenizer}, {corpus.n_ids:,} tokens"),
        ("model", f"{n_parameters:,} parameters"),
        ("training", f"{n_tokens:,} tokens in {pretrain.steps:,} steps, {n_tokens / len(corpus.training):.3g} passes"),
        ("checkpoints", " ".join(map(str, kept)) or "none"),
        ("disk", f"{size(stored * (1 + len(kept)))}, and {size(4 * 3 * n_parameters)} while training"),
        *memory(12 * len(corpus.training), 4 * _STATE_COPIES * n_parameters + logits + blocks, device=job.device.type),
        ("time", f"about {_duration(seconds * pretrain.steps)}: a step took {seconds:.3g} s just now"),
    ]


def _seconds_of_a_step(job: "Job") -> float:
    """Of the second step of a training that nobody keeps."""
    pretrain, seed = job.settings.pretrain, job.settings.seed
    optimiser = job.optimiser()
    begun = 0.0
    for step in range(2):
        begun = time.perf_counter()
        batches = (job.windows.batch(step * pretrain.accumulation + number) for number in range(pretrain.accumulation))
        # To know the loss is to wait for the device.
        float(optimiser.learn(batches, step=step, seed=seed).loss)
    return time.perf_counter() - begun


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"
