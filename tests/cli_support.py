"""Runs `circuit` as people do, in a process of its own, with the stages of `fake_stages`."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import nursery

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# For a machine that is busy with other things.
TIMEOUT_S = 300


@dataclass(frozen=True)
class Outcome:
    """What a process left."""

    status: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict]:
        """The records on stdout."""
        return [json.loads(line) for line in self.stdout.split("\n") if line]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the records, in order."""
        return [record["kind"] for record in self.records]

    @property
    def errors(self) -> list[str]:
        """The error and hint lines."""
        return [line for line in self.stderr.split("\n") if line.startswith(("error:", "hint:"))]


def command_line(words: Sequence[str], more: str = "") -> list[str]:
    """A process that runs one command; ``more`` is a program that may replace further stages."""
    start = "from circuitcli.__main__ import main\nsys.exit(main())"
    program = f"import sys, fake_stages\nfake_stages.install()\n{more}\n{start}"
    return [sys.executable, "-c", program, *words]


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process that finds this source tree, and no settings of the person who runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUIT_")}
    return {**inherited, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **variables}


def circuit(*words: str, cwd: Path, stdin: str | None = None, more: str = "", **variables: str) -> Outcome:
    """Run one command, with the libraries loaded; without ``stdin`` there is nothing to read."""
    _, *program = command_line(words, more)
    done = nursery.run(program, cwd=cwd, env=environment(**variables), input=stdin, timeout=TIMEOUT_S)
    return Outcome(done.returncode, done.stdout, done.stderr)


def here(*words: str, cwd: Path) -> Outcome:
    """Run one command in this process, with the real stages: libraries are loaded already, which takes seconds."""
    from circuitcli import progress
    from circuitcli.cli.app import run

    logger = logging.getLogger("circuitcli")
    before = logger.handlers, logger.propagate, logger.level
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with chdir(cwd), redirect_stdout(stdout), redirect_stderr(stderr), warnings.catch_warnings():
            status = run(words)
    finally:
        progress.set_sink(None)
        logger.handlers, logger.propagate, logger.level = before
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def pipe(*commands: str | Sequence[str], cwd: Path, **variables: str) -> Outcome:
    """Run a shell pipe; a text is a program of the shell, a sequence the words of a `circuit` command."""
    parts = [text if isinstance(text, str) else shlex.join(command_line(text)) for text in commands]
    done = subprocess.run(
        ["bash", "-c", " | ".join(parts)],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
