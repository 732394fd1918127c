"""Where a command's records come from: a file, the pipe, or the run that is being worked on."""

import os
import select
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from circuitcli import processes, records, runs
from circuitcli.cli.console import console, stderr_is_terminal
from circuitcli.errors import InputError
from circuitcli.reading import FILE_BYTES, as_path, stream_lines, text_lines
from circuitcli.records import Record, RunRecord, Stream
from circuitcli.runs import Run

# How long a pipe may be silent before a log is told what the command waits for.
WAIT_S = 10.0
# In memory, of all records; whoever writes without end does not fill it.
MOST_BYTES = 2**30
# What `circuit render` writes and nothing reads.
_PICTURES = (".html", ".svg", ".png", ".pdf", ".dot", ".csv", ".mmd")


@dataclass(frozen=True)
class Received:
    """What a command read: the lines as they came, the records in them, and the run that they belong to."""

    lines: tuple[str, ...]
    records: Stream
    run: Run
    source: Literal["pipe", "file", "run"]

    def forwarded(self, emitted: Iterable[Record]) -> list[str]:
        """The lines to pass on in front of what was made: those read, byte for byte.

        From a run rather than a pipe they are what a pipe would have carried: the records of all its finished stages.
        """
        return _lines_of_run(self.run, emitted) if self.source == "run" else list(self.lines)


def receive(file: str | None, *, run: str | None, run_is_explicit: bool, needs_run: bool = True) -> Received:
    """The records from FILE or ``-``; else of a run named by flag; else from the pipe; else of the current run.

    run: the run that flags, environment or files of settings name. The pipe is read to its end, so that the commands
    of a pipe run one after the other. Raises InputError if there are no records or, unless ``needs_run`` is False,
    if the run that they belong to is not here.
    """
    if file is not None and file != "-":
        lines, source = _file_lines(file), "file"
    elif file == "-" or (not run_is_explicit and stdin_has_records()):
        lines, source = stdin_lines(), "pipe"
    else:
        current = _existing(runs.current(run), run)
        return Received((), current.stream(), current, "run")
    stream = records.read(lines, name="stdin" if source == "pipe" else str(file))
    origin = as_path(file) if source == "file" and file else None
    owner = _owner(stream, named=run if run_is_explicit else None, fallback=run, file=origin, needed=needs_run)
    return Received(lines, stream, owner, "file" if source == "file" else "pipe")


def stdin_has_records() -> bool:
    """Whether stdin is a pipe, a socket or a file, rather than a terminal or nothing.

    Several processes have one stdin, whatever it is: none of them reads it.
    """
    if processes.count() > 1:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def stdin_lines() -> tuple[str, ...]:
    """All lines of stdin that are not blank. Raises InputError if there are none, or if they are no text."""
    tell_what_is_waited_for(
        "waiting for stdin; to work on a run instead, name it with --run, or close stdin with < /dev/null"
    )
    lines = _all(stream_lines(sys.stdin.buffer, name="stdin", hint="records are JSON lines"), name="stdin")
    if not lines:
        raise InputError(
            "stdin is empty: the command before this one in the pipe failed",
            hint="see its error above; without a pipe, name a run with --run",
        )
    return lines


def stdin_text() -> str:
    """All of stdin as text. Raises InputError if it is none, or more than any text that is looked at as a whole."""
    tell_what_is_waited_for("waiting for the text on stdin")
    content = sys.stdin.buffer.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise InputError(f"stdin has more than {FILE_BYTES:,} bytes", hint="give a shorter text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise InputError(f"stdin is not UTF-8 text: byte {problem.start}", hint="a text has to be UTF-8") from None


def tell_what_is_waited_for(message: str) -> None:
    """Tell a log of a stdin that stays silent; on a terminal the user sees that nothing goes on."""
    if not stderr_is_terminal() and not select.select([sys.stdin], [], [], WAIT_S)[0]:
        console.say(message)


def _begins_an_object(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(100).lstrip().startswith(b"{")


def _file_lines(file: str) -> tuple[str, ...]:
    hint = "FILE is a file of records, JSON lines, or - for stdin"
    path = as_path(file, hint=hint)
    if path.is_file():
        # Loads NumPy, which help and errors do without.
        from circuitcli.graphs.exchange import formats

        if (shared := formats.read(path)) is not None:
            # Of another program: what it holds as a command would have passed it on.
            return tuple(map(records.to_line, shared.records()))
        if path.suffix.lower() in _PICTURES and not _begins_an_object(path):
            raise InputError(f"{file} is a picture or a table, from which no graph is read", hint=formats.HINT)
    return _all(text_lines(path, hint=hint), name=file)


def _all(lines: Iterable[tuple[str, str]], *, name: str) -> tuple[str, ...]:
    kept, n_bytes = list[str](), 0
    for _, line in lines:
        n_bytes += sys.getsizeof(line)
        if n_bytes > MOST_BYTES:
            hint = "does the program that writes them ever stop?"
            raise InputError(f"{name} has more records than fit into {MOST_BYTES:,} bytes of memory", hint=hint)
        kept.append(line)
    return tuple(kept)


def _owner(stream: Stream, *, named: str | None, fallback: str | None, file: Path | None, needed: bool) -> Run:
    record = stream.last(RunRecord)
    path = named or (record.path if record is not None else None)
    run = Run(Path(path)) if path is not None else _run_around(file) or runs.current(fallback)
    if needed:
        return _existing(run, path)
    return run or Run(file.parent if file is not None else Path())


def _run_around(file: Path | None) -> Run | None:
    """The run directory in which a file lies."""
    above = (Run(directory) for directory in file.absolute().parents) if file is not None else ()
    return next((run for run in above if run.exists), None)


def _existing(run: Run | None, named: str | None) -> Run:
    if run is None:
        raise InputError(
            "there is no run to work on: no pipe, no --run, and no command has run in this directory",
            hint="start with `circuit collect`, or name a run with --run",
        )
    if not run.exists:
        hint = "start with `circuit collect`, or name a run with --run; in a pipe leave out --run: the records name it"
        raise InputError(f"{run.path} is not a run directory" if named else f"{run.path} is gone", hint=hint)
    return run


def _lines_of_run(run: Run, emitted: Iterable[Record]) -> list[str]:
    if not run.exists:
        return []
    new = [records.to_line(record) for record in emitted]
    lines = [records.to_line(run.record())]
    for name, entry in run.manifest().get("stages", {}).items():
        if entry.get("state") == "finished":
            stage = [records.to_line(record) for record in run.stage_records(name)]
            lines += [] if _is_part(stage, new) else stage
    return lines


def _is_part(stage: list[str], new: list[str]) -> bool:
    """Whether what was made now are these lines, alone or among those of other stages."""
    return stage == new or any(new[start : start + len(stage)] == stage for start in range(len(new)) if stage)
