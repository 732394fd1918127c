"""The run directory: manifest, fingerprints, lock, atomic writes, resume.

    RUN/run.json               manifest: model, versions, and for each stage its settings, state, seconds, command line
    RUN/records/STAGE.jsonl    the records that a finished stage emitted
    RUN/lock                   held by the one process that works on the run

A stage's fingerprint is the digest of the settings it reads, its input records and the format version. Finished with
the same fingerprint: its records are emitted again. Unfinished: it goes on. Another fingerprint: refused.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from circuitcli import __version__, records
from circuitcli.errors import CircuitError, InputError, how_to_go_on
from circuitcli.manifest import FORMAT_VERSION, NEXT, Fingerprint, digest, read_manifest
from circuitcli.reading import as_path, read_text
from circuitcli.records import Record, RunRecord, Stream

__all__ = ["Fingerprint", "Run", "atomic", "current", "digest", "file_digest", "model_slug", "remember", "write_error"]

POINTER = ".circuit-run"
LIBRARIES = ("torch", "transformers", "tokenizers", "h5py", "numpy")
# The lock files that this process holds, by run directory: a directory that was removed does not come back.
_held: dict[Path, tuple[int, int]] = {}


def file_digest(path: Path) -> str:
    """``sha256:...`` of a file's bytes."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` whole or not at all."""
    make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from None
        raise


def make_folder(path: Path) -> None:
    """Make a directory and those above it. Raises InputError if it cannot be made, or if it lies in a removed run.

    What must not come back with the first file that is written is half a run that this process works on.
    """
    check_there(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def check_there(path: Path) -> None:
    """Raise InputError if a path lies in a run that this process works on and that was removed or replaced since."""
    whole = path.absolute()
    for run, identity in _held.items():
        if whole.is_relative_to(run) and _identity(run / "lock") != identity:
            raise InputError(
                f"{run} was removed while the command was working on it", hint="begin again with `circuit collect`"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_error(path: Path, error: OSError) -> CircuitError:
    """The error for a file that could not be written."""
    options = "--run (pretrain, render: --output; interp: --html)"
    return InputError(
        f"cannot write {path}: {error.strerror or error}",
        hint=f"make space or choose a writable directory with {options}; {how_to_go_on()}",
    )


def model_slug(model: str) -> str:
    """The model's name as the name of a directory."""
    name = model.rstrip("/")
    name = Path(name).name if name.startswith(("/", ".")) or name.endswith(".gguf") else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


class Run:
    """One run directory. Paths in records are relative to it. ``option`` is that by which people choose it."""

    def __init__(self, path: Path, *, option: str = "--run") -> None:
        self.path, self.option = path, option

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.path / "run.json"

    @property
    def exists(self) -> bool:
        """Whether a stage has worked here."""
        return self.manifest_path.is_file()

    def manifest(self) -> dict[str, Any]:
        """The manifest; empty in a new run. Raises InputError if it cannot be read."""
        if not self.exists:
            return {}
        return read_manifest(self.manifest_path)

    def update_manifest(self, **fields: Any) -> None:
        """Replace top-level fields of the manifest."""
        content = {"format": FORMAT_VERSION, "version": __version__, **self.manifest(), **fields}
        with atomic(self.manifest_path) as stream:
            json.dump(content, stream, indent=1, ensure_ascii=False, default=str)
            stream.write("\n")

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's entry in the manifest; empty if it never ran."""
        return dict(self.manifest().get("stages", {}).get(name, {}))

    def stages(self) -> dict[str, Any]:
        """The entries of all stages, in the order in which they were asked for."""
        return dict(self.manifest().get("stages", {}))

    def update_stage(self, name: str, **fields: Any) -> None:
        """Change a stage's entry in the manifest."""
        self._set_stage(name, {**self.stage(name), **fields})

    def _set_stage(self, name: str, entry: Mapping[str, Any]) -> None:
        self.update_manifest(stages={**self.stages(), name: dict(entry)})

    def finished(self, name: str, fingerprint: Fingerprint) -> list[Record] | None:
        """What the stage emitted, if it has finished with the same fingerprint."""
        entry = self.stage(name)
        if not fingerprint.matches(entry) or entry.get("state") != "finished":
            return None
        return self.stage_records(name)

    def begin(self, name: str, fingerprint: Fingerprint, *, force: bool = False, keeps: bool = False) -> bool:
        """Mark a stage as running. Returns whether it goes on with earlier work of the same fingerprint.

        keeps: what is finished stays what the run holds until `promote` or `finish` puts the new work in its place.
        Raises InputError, naming the first difference, if the run holds the stage with another fingerprint, unless
        ``force`` is set.
        """
        entry = self.stage(name)
        unfinished = entry.pop(NEXT, {})
        if entry and not force and not fingerprint.is_of(entry) and not fingerprint.is_of(unfinished):
            or_name = " or --name" if name.startswith(("graph:", "validate:")) else ""
            raise InputError(
                f"{self.path} already has {name} with other settings: {fingerprint.first_difference(entry)}",
                hint=f"use --force to replace it, or another {self.option}{or_name}",
            )
        is_aside = keeps and entry.get("state") == "finished"
        before = unfinished if is_aside else entry
        resumes = not force and fingerprint.is_of(before)
        begun = {
            "fingerprint": fingerprint.digest,
            "settings": dict(fingerprint.settings),
            "inputs": dict(fingerprint.inputs),
            "measuring": dict(fingerprint.measuring),
            "state": "running",
            "command": shlex.join(["circuit", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": before.get("seconds", 0.0) if resumes else 0.0,
            "versions": _versions(),
        }
        self._set_stage(name, {**entry, NEXT: begun} if is_aside else {**entry, **begun})
        return resumes

    def promote(self, name: str) -> None:
        """Let unfinished work that was done aside be the stage's own from now on: what was finished is given up."""
        entry = self.stage(name)
        if NEXT in entry:
            self._set_stage(name, dict(entry[NEXT]))

    def give_up(self, name: str) -> None:
        """Forget unfinished work that was to take the place of what is finished."""
        entry = self.stage(name)
        if entry.pop(NEXT, None) is not None:
            self._set_stage(name, entry)

    def finish(self, name: str, emitted: Iterable[Record], *, seconds: float, **facts: Any) -> None:
        """Keep a stage's records and mark it as finished; ``facts`` join its entry."""
        # Records of the one with the entry of the other would be taken for finished work.
        self.promote(name)
        with atomic(self._records_path(name)) as stream:
            records.write(emitted, stream)
        before = float(self.stage(name).get("seconds", 0.0))
        self.update_stage(name, state="finished", seconds=round(before + seconds, 3), **facts)
        self.touch(name)

    def touch(self, name: str) -> None:
        """Make a stage the one that was asked for last; its records then come last in the run's stream."""
        stages = self.manifest()["stages"]
        if list(stages)[-1] != name:
            self.update_manifest(stages={**{key: stages[key] for key in stages if key != name}, name: stages[name]})

    def interrupt(self, name: str, *, seconds: float) -> None:
        """Remember the time that an unfinished stage took."""
        entry = self.stage(name)
        work = dict(entry.get(NEXT, entry))
        work |= {"state": "interrupted", "seconds": round(float(work.get("seconds", 0.0)) + seconds, 3)}
        self._set_stage(name, {**entry, NEXT: work} if NEXT in entry else work)

    def restore(self, name: str, before: Mapping[str, Any]) -> None:
        """Put a stage's entry back as it was, in its place among the others, and take the manifest away if the run
        holds nothing else.

        before: all stages as they were.
        """
        content = self.manifest()
        now = content.get("stages", {})
        restored = {key: before[key] if key == name else now[key] for key in before if key == name or key in now}
        stages = restored | {key: entry for key, entry in now.items() if key not in restored and key != name}
        if stages or "model" in content:
            self.update_manifest(stages=stages)
        else:
            self.manifest_path.unlink(missing_ok=True)

    def forget(self, names: Iterable[str]) -> None:
        """Take stages out of the manifest: what they emitted holds no longer."""
        stages, gone = self.manifest().get("stages", {}), set(names)
        if gone & stages.keys():
            self.update_manifest(stages={name: entry for name, entry in stages.items() if name not in gone})

    def _records_path(self, name: str) -> Path:
        return self.path / "records" / f"{name.replace(':', '-')}.jsonl"

    def stage_records(self, name: str) -> list[Record]:
        """What a finished stage emitted."""
        path = self._records_path(name)
        return list(records.read_file(path, hint="run the stage again with --force"))

    def stream(self) -> Stream:
        """The records of all finished stages, in the order in which they finished; what a pipe would have carried."""
        manifest = self.manifest()
        stream = Stream([self.record()])
        for name, entry in manifest.get("stages", {}).items():
            if entry.get("state") == "finished":
                stream = stream + self.stage_records(name)
        return stream

    def record(self) -> RunRecord:
        """The run's own record. Raises InputError if nothing has worked here yet."""
        manifest = self.manifest()
        if not manifest:
            raise InputError(
                f"{self.path} is not a run directory", hint="start with `circuit collect`, or name another --run"
            )
        return RunRecord(
            path=str(self.path),
            model=manifest.get("model", ""),
            revision=manifest.get("revision"),
            layers=manifest.get("layers", ":"),
            version=manifest.get("version", __version__),
        )

    @contextmanager
    def lock(self, *, begins: bool = True) -> Iterator[None]:
        """Hold the run alone. Raises InputError at once, naming the holder, if another process works on it.

        begins: whether a run may begin here; else InputError is raised where there is no directory. Of one that began
        and came to nothing no folder stays.
        """
        path = self.path / "lock"
        is_new = not self.path.exists()
        if is_new and not begins:
            raise InputError(f"{self.path} is gone", hint="begin again with `circuit collect`, or name another --run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b", buffering=0)
        except OSError as error:
            raise write_error(path, error) from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise InputError(
                    f"{self.path} is in use by {stream.read().decode(errors='replace').strip() or 'another process'}",
                    hint=f"wait for it, or choose another {self.option}",
                ) from None
            stream.truncate(0)
            # On a full disk the holder stays nameless.
            with suppress(OSError):
                stream.write(f"process {os.getpid()}: {shlex.join(['circuit', *sys.argv[1:]])}\n".encode())
            status = os.fstat(stream.fileno())
            _held[self.path.absolute()] = status.st_dev, status.st_ino
            try:
                yield
            finally:
                stream.truncate(0)
                del _held[self.path.absolute()]
                if is_new and self.path.is_dir() and list(self.path.iterdir()) == [path]:
                    path.unlink()
                    self.path.rmdir()


def _versions() -> dict[str, str]:
    versions = {"circuitcli": __version__, "python": sys.version.split()[0]}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def remember(run: Run, directory: Path | None = None) -> None:
    """Make this the run that later commands in the directory work on; a read-only directory remembers nothing."""
    try:
        ((directory or Path.cwd()) / POINTER).write_text(str(run.path) + "\n", encoding="utf-8")
    except OSError:
        return


def current(named: str | None, directory: Path | None = None) -> Run | None:
    """The run that was named (by flag, environment or file), else the one used last in this directory."""
    if named is not None:
        return Run(Path(named))
    pointer = (directory or Path.cwd()) / POINTER
    if not pointer.is_file():
        return None
    hint = f"remove {POINTER}, or name a run with --run"
    run = Run(as_path(read_text(pointer, limit_bytes=2**16, hint=hint).strip(), hint=hint))
    return run if run.exists else None
