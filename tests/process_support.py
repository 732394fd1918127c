"""Several processes of one program on this machine, as a launcher starts them."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import nursery
from cli_support import TIMEOUT_S, Outcome, environment

# Without --multi_gpu accelerate starts a single process where it sees no two GPUs.
LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port {port}",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port {port}",
}
# How each is told to start a program that is not Python's.
NO_PYTHON = {"torchrun": "--no-python", "accelerate": "--no_python"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def of_ranks(n: int) -> list[dict[str, str]]:
    """The variables of each of ``n`` processes that are to find each other."""
    common = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return [environment(OMP_NUM_THREADS="1", RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(n)]


def together(program: str, *arguments: str, n: int, cwd: Path) -> list[Outcome]:
    """Run a Python program ``n`` times at once, with what `torchrun` puts into the environment but no launcher."""
    started = []
    for variables in of_ranks(n):
        command = [sys.executable, "-c", program, *arguments]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        started.append(subprocess.Popen(command, cwd=cwd, env=variables, **pipes))
    try:
        told = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Outcome(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]


def side_by_side(words: Sequence[str], *, n: int, cwd: Path) -> list[Outcome]:
    """``python WORDS`` as `together`, but with the libraries loaded."""
    with ExitStack() as stack:
        nothing = stack.enter_context(Path(os.devnull).open("rb"))
        started = []
        for variables in of_ranks(n):
            told = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            streams = [stream.fileno() for stream in (nothing, *told)]
            process = nursery.start(words, cwd=cwd, env=variables, streams=streams)
            stack.callback(process.kill)
            started.append((process, told))
        return [Outcome(process.wait(TIMEOUT_S), *map(_text, told)) for process, told in started]


def launched(launcher: str, *words: str, run: Path, stdin: str | None = None) -> subprocess.CompletedProcess:
    """``circuit WORDS`` on a run, by two processes of a launcher; all three begin with the libraries loaded."""
    program = run.parent / "circuit-of-a-launcher"
    nursery.client(program)
    module, *options = LAUNCHERS[launcher].format(port=free_port()).split()
    command = [*nursery.module(module), *options, NO_PYTHON[launcher], str(program), *words]
    return nursery.run(command, cwd=run.parent, env=_of_run(run), input=stdin, timeout=TIMEOUT_S)


def launched_anew(launcher: str, *words: str, run: Path) -> subprocess.CompletedProcess:
    """The same as users do it: each of the three processes loads everything for itself."""
    options = LAUNCHERS[launcher].format(port=free_port()).split()
    command = ["-m", *options, "-m", "circuitcli", *words]
    return nursery.run_anew(command, cwd=run.parent, env=_of_run(run), timeout=TIMEOUT_S)


def _of_run(run: Path) -> dict[str, str]:
    """Variables for commands on a run: launchers take ``--run`` for an option of theirs."""
    return environment(OMP_NUM_THREADS="1", CIRCUIT_RUN=str(run))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()
