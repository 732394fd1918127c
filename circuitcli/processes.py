"""Which of several processes this one is, as `torchrun`, `accelerate launch` and others say in the environment.

A command that nobody launched several times is process 0 of 1.
"""

import os

from circuitcli.errors import SettingsError

_NAMES = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}


def rank() -> int:
    """This process's number, from 0. Raises SettingsError where the environment contradicts itself."""
    return _read()["RANK"]


def local_rank() -> int:
    """Its number among those on this machine; the CUDA device that it takes."""
    return _read()["LOCAL_RANK"]


def count() -> int:
    """How many processes run this command together."""
    return _read()["WORLD_SIZE"]


def is_main() -> bool:
    """Whether this is the process that prints, holds the run's lock and writes its manifest."""
    return rank() == 0


def share_cores() -> None:
    """Let the tokenizers of several processes on this machine take their part of its cores; call it before the first.

    A number that the user chose stays. PyTorch's threads are shared out by the launchers.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if here.isdecimal() and int(here) > 1:
        os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(here))))


def _read() -> dict[str, int]:
    # Some schedulers set WORLD_SIZE for jobs in which nobody has numbered the processes.
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _NAMES
    variables = {"LOCAL_RANK": os.environ["RANK"]} | {name: os.environ[name] for name in _NAMES if name in os.environ}
    try:
        numbers = {name: int(text) for name, text in variables.items()}
    except ValueError:
        numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 0}
    if not (0 <= numbers["LOCAL_RANK"] <= numbers["RANK"] < numbers["WORLD_SIZE"]):
        told = " ".join(f"{name}={text}" for name, text in variables.items())
        raise SettingsError(
            f"the environment variables of the processes do not fit together: {told}",
            hint="start several with `torchrun --nproc-per-node 2 -m circuitcli ...`, or unset RANK and WORLD_SIZE",
        )
    return numbers
