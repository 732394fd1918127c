"""What one command does: settings, records in, a request to a stage, records out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitcli import group, processes, records, runs
from circuitcli.cli import summaries
from circuitcli.cli.console import Rows, console
from circuitcli.cli.input import Received, receive, stdin_has_records, stdin_lines
from circuitcli.cli.spool import SPOOLED_TEXT, spool
from circuitcli.errors import InputError, SettingsError
from circuitcli.records import ModelRecord, Record, RunRecord, Stream
from circuitcli.runs import Run
from circuitcli.settings.model import ModelSettings, absolute_name
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import PROJECT_FILE, Loaded
from circuitcli.stages.request import Request

# What several processes can do together.
SHARED = ("collect", "train", "pretrain")

# What begins a run, and so works on no other one.
BEGINNING = ("pretrain", "collect", "develop")


def check_command(name: str) -> None:
    """Raise SettingsError where several processes were started for a command that works in one."""
    if processes.count() > 1 and name not in SHARED:
        raise SettingsError(
            f"{processes.count()} processes were started for `circuit {name}`, which runs in one",
            hint=f"start it once; only these share their work among several: {' '.join(SHARED)}",
        )


@dataclass(frozen=True)
class Job:
    """A request to a stage, and what to pass on around its answer.

    place: where people find what was made, if not in the run.
    """

    command: str
    request: Request
    received: Received
    # Whether later commands that name no run work on this one.
    is_current: bool = True
    place: str | None = None
    started: float = field(default_factory=time.perf_counter)

    def emit(self, emitted: Sequence[Record]) -> None:
        """Pass on what was read and append what the stage made; people get a short table instead.

        Of several processes the main one does so.
        """
        if not processes.is_main():
            return
        run = self.request.run
        if run.exists and self.is_current:
            runs.remember(run)
        seconds = time.perf_counter() - self.started
        if not console.prints_records:
            for rows in summaries.tables(emitted, run.path):
                console.table(rows)
        console.say(summaries.sentence(self.command, emitted, self.place or str(run.path), seconds))
        if console.prints_records:
            console.records([*self.received.forwarded(emitted), *map(records.to_line, emitted)])
        elif step := summaries.next_step(self.command, emitted):
            console.say(f"next: {step}")


@dataclass(frozen=True)
class Call:
    """One command as it was typed."""

    command: str
    loaded: Loaded
    force: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_is_explicit(self) -> bool:
        """Whether a flag names the run; it then takes the place of a pipe."""
        return self.loaded.origins.get("run") in ("flag", "--set")

    def open(self, *, needs_run: bool = True) -> Job:
        """Read the records and make the request; the run's model is the default. Raises InputError."""
        received = receive(
            self.extras.get("file"),
            run=self.loaded.settings.run,
            run_is_explicit=self.run_is_explicit,
            needs_run=needs_run,
        )
        console.hello(f"{self.command} in {received.run.path}")
        settings = with_model_of(received.run, self.loaded).settings
        return Job(self.command, Request(settings, received.records, received.run, self.force), received)

    def open_for_saes(self, named: str | None) -> Job:
        """As `open`; but where SAEs are named, neither a pipe is read nor a run needed, unless one is asked for."""
        if named is None or self.run_is_explicit or self.extras.get("file") is not None:
            job = self.open()
        else:
            job = self.open_without_pipe()
        settings = job.request.settings.model_copy(update={"sae_path": named})
        return replace(job, request=replace(job.request, settings=settings))

    def open_without_pipe(self) -> Job:
        """The run used last, unless another model is asked for; else a request that belongs to no run."""
        run = runs.current(self.loaded.settings.run)
        if run is None or not run.exists or "model.name" in self.loaded.origins:
            received = Received((), Stream(), Run(Path()), "pipe")
            return Job(
                self.command, Request(self.loaded.settings, received.records, received.run, self.force), received
            )
        received = Received((), run.stream(), run, "pipe")
        settings = with_model_of(run, self.loaded).settings
        return Job(self.command, Request(settings, received.records, run, self.force), received)

    def revisit(self) -> Job:
        """Ask about the run that the same settings would begin or, if they name none, that was used last."""
        settings = self.loaded.settings
        named = settings.run or "model.name" in self.loaded.origins
        run = None if named else runs.current(None)
        run = run or Run(Path(settings.run or f"runs/{runs.model_slug(settings.model.name)}"))
        return Job(self.command, Request(settings, Stream(), run), Received((), Stream(), run, "pipe"))

    def begin_model(self) -> Job:
        """Make the request that trains a model, which belongs to no run. Raises SettingsError if it has no place."""
        from circuitcli.stages.pretrain import run_of

        settings = self.loaded.settings
        run, place = run_of(settings), str(settings.pretrain.output)
        console.hello(f"{self.command} in {place}")
        received = Received((), Stream(), run, "pipe")
        return Job(self.command, Request(settings, Stream(), run, self.force), received, is_current=False, place=place)

    def start(self, *, keeps_text: bool = True) -> Job:
        """Make the request that begins a run; text from stdin is kept in the run, or the model is that of the pipe.

        Raises InputError.
        """
        lines, piped = self._piped()
        settings = with_model_from(piped, self.loaded)
        run = Run(Path(settings.run or f"runs/{runs.model_slug(settings.model.name)}"))
        console.hello(f"{self.command} {settings.model.name} in {run.path}")
        if settings.data.text == "-" and settings.data.field is not None:
            raise SettingsError(
                f"--field {settings.data.field} does not apply to stdin, which is read as plain text",
                hint="save it to a file with the right suffix, for example texts.jsonl, and name that with --text",
            )
        if settings.data.text == "-" and keeps_text:
            # Several processes have one stdin.
            path = (
                spool(run, force=self.force, n_tokens=settings.data.tokens)
                if processes.is_main()
                else run.path / SPOOLED_TEXT
            )
            group.barrier()
            settings = settings.model_copy(update={"data": settings.data.model_copy(update={"text": str(path)})})
        received = Received(lines, piped, run, "pipe")
        return Job(self.command, Request(settings, received.records, run, self.force), received)

    def _piped(self) -> tuple[tuple[str, ...], Stream]:
        """What the command before one that begins a run made; nothing where a model is named or stdin is the text."""
        data, named = self.loaded.settings.data, self.loaded.origins.get("model.name")
        # A project's file names the usual model, not one that was trained a moment ago.
        is_named = named not in (None, PROJECT_FILE) or data.activations is not None
        if is_named or data.text == "-" or not stdin_has_records():
            return (), Stream()
        lines = stdin_lines()
        return lines, records.read(lines, name="stdin")


def with_model_from(piped: Stream, loaded: Loaded) -> Settings:
    """The settings with the model that came through the pipe, if one did, and, unless another is set, its text."""
    settings, record = loaded.settings, piped.last(ModelRecord)
    if record is None:
        return settings
    update: dict[str, Any] = {"model": settings.model.model_copy(update={"name": record.path})}
    if settings.data.text is None and record.text is not None:
        update["data"] = settings.data.model_copy(update={"text": record.text, "field": record.field})
    return settings.model_copy(update=update)


def with_run_record(emitted: Sequence[Record], run: Run) -> list[Record]:
    """The records of a stage that begins a run, after the one that names the run."""
    if any(isinstance(record, RunRecord) for record in emitted):
        return list(emitted)
    return [run.record(), *emitted]


def with_model_of(run: Run, loaded: Loaded) -> Loaded:
    """The settings with those of the run's model where nobody set them; its name as the run knows it.

    Raises InputError, naming both, if another model or revision was asked for.
    """
    manifest = run.manifest()
    recorded = manifest.get("model_settings") or {
        f"model.{name}": manifest[key] for name, key in (("name", "model"), ("revision", "revision")) if key in manifest
    }
    for setting in ("model.name", "model.revision"):
        asked = getattr(loaded.settings.model, setting.rpartition(".")[2])
        if (
            setting == "model.name"
            and setting in recorded
            and asked is not None
            and _is_same_model(asked, recorded[setting])
        ):
            continue
        if setting in loaded.origins and setting in recorded and asked != recorded[setting]:
            raise InputError(
                f"{run.path} was made with {setting} {recorded[setting]}, not {asked} ({loaded.origins[setting]})",
                hint="leave it out to use the run's, or choose another --run",
            )
    inherited = {name: value for name, value in recorded.items() if name not in loaded.origins or name == "model.name"}
    fields = {name.rpartition(".")[2]: value for name, value in inherited.items()}
    model = ModelSettings.model_validate({**loaded.settings.model.model_dump(), **fields})
    origins = {**dict.fromkeys(inherited, "run"), **loaded.origins}
    return Loaded(loaded.settings.model_copy(update={"model": model}), origins)


def _is_same_model(asked: str, recorded: str) -> bool:
    """Whether two names mean one model: a local one may be named from another folder."""
    return asked == recorded or absolute_name(asked) == absolute_name(recorded)


def show_plan(rows: Sequence[tuple[str, str]]) -> None:
    """Tell what a command would do."""
    console.table(Rows(("", ""), rows))
