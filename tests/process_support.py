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


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()
