"""Several processes of one program on this machine, as a launcher starts them."""

import socket
import subprocess
import sys
from pathlib import Path

from cli_support import TIMEOUT_S, Outcome, environment


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(program: str, *arguments: str, n: int, cwd: Path) -> list[Outcome]:
    """Run a Python program ``n`` times at once, with what `torchrun` puts into the environment but no launcher."""
    port = str(free_port())
    started = []
    for rank in range(n):
        names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        variables = environment(OMP_NUM_THREADS="1", **{name: str(value) for name, value in names.items()})
        command = [sys.executable, "-c", program, *arguments]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        started.append(subprocess.Popen(command, cwd=cwd, env=variables, **pipes))
    try:
        told = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Outcome(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]
