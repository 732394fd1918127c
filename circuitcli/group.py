"""What the processes of one command tell each other: values, who failed, and the group that adds up their tensors.

Every process must make the same calls in the same order. Waiting for what others work on has no limit, ends when a
signal comes, and ends with the error of the first process that failed; waiting for others to appear at all has one. A
process alone pays nothing: no torch is imported for it.
"""

import json
import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from circuitcli import processes
from circuitcli.errors import CircuitError, ExitStatus, ToolError, first_line, how_to_go_on
from circuitcli.reading import whole_number

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_POLL_S = 0.02
_FAILURE = "failure"
# How long connecting to what listens may take, and how long a connected store may take for an answer.
_CONNECT_S, _ANSWER_S = 30.0, 1800.0
# How long a process that fails waits for the others to appear.
_FAREWELL_S = 15.0
_numbers = count()
_wait_s = 300.0


def limit_wait(seconds: float) -> None:
    """How long to wait for the others to appear; they may still load libraries, or be started by hand."""
    global _wait_s
    _wait_s = seconds


def gather(value: T) -> list[T]:
    """The value of each process, in the order of their numbers. Values are those of JSON."""
    if processes.count() == 1:
        return [value]
    _await_all()
    number = next(_numbers)
    keys = [f"{number}/{rank}" for rank in range(processes.count())]
    _set(keys[processes.rank()], value)
    return [_awaited(key) for key in keys]


def share(value: T) -> T:
    """The main process's value, in all of them; what the others give is not looked at. Values are those of JSON."""
    if processes.count() == 1:
        return value
    _await_all()
    key = f"{next(_numbers)}/main"
    if processes.is_main():
        _set(key, value)
        return value
    shared: T = _awaited(key)
    return shared


def barrier() -> None:
    """Return when all processes have come here."""
    gather(None)


def leave() -> None:
    """The last call: the main process waits for the others, which lean on it, and they go at once."""
    if processes.count() == 1:
        return
    if not processes.is_main():
        return _set(f"left/{processes.rank()}", None)
    for rank in range(1, processes.count()):
        _awaited(f"left/{rank}")


def tell_failure(message: str, *, hint: str, status: int) -> None:
    """Tell all processes why this one fails, unless another has told before.

    The main process, which keeps what is told, waits a while for those that have not appeared yet, to hear of it.
    """
    limit_wait(min(_wait_s, _FAREWELL_S))
    content = {"rank": processes.rank(), "message": message, "hint": hint, "status": status}
    _asked(lambda store: store.compare_set(_FAILURE, "", json.dumps(content)))
    if processes.is_main():
        with suppress(CircuitError):
            _await_all()


def failure_of_another() -> CircuitError | None:
    """Why another process failed before this one, if one did."""
    if processes.count() == 1 or not _asked(lambda store: store.check([_FAILURE])):
        return None
    told = json.loads(_asked(lambda store: store.get(_FAILURE)))
    if told["rank"] == processes.rank():
        return None
    error = CircuitError(f"process {told['rank']}: {told['message']}", hint=told["hint"])
    error.exit_status = ExitStatus(told["status"])
    return error


def check() -> None:
    """Raise CircuitError if another process has failed; for long work between two exchanges."""
    if (error := failure_of_another()) is not None:
        raise error


def start(device: "torch.device") -> None:
    """Make torch's process group, once, for collectives on tensors of the device and of the CPU.

    Does nothing in one process. Raises ToolError if the processes do not find each other.
    """
    import torch.distributed as dist

    if processes.count() == 1 or dist.is_initialized():
        return
    _await_all()
    backend = dist.get_default_backend_for_device(device)
    try:
        dist.init_process_group(
            # What of a step is known on the CPU is sent from there, which the back ends of GPUs refuse.
            backend if backend == "gloo" else f"cpu:gloo,{device.type}:{backend}",
            store=dist.PrefixStore("tensors", _store()),
            rank=processes.rank(),
            world_size=processes.count(),
            device_id=None if backend == "gloo" else device,
        )
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error


@cache
def _store() -> Any:
    from torch.distributed import PrefixStore

    # A launcher that starts the processes again may keep its store.
    store = PrefixStore(f"circuit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _connected())
    store.set(_here(processes.rank()), "")
    return store


def _connected() -> Any:
    """The store that all processes share. Raises ToolError if it does not appear in time."""
    from torch.distributed.rendezvous import rendezvous

    if not processes.is_main():
        _wait_for_main()
    try:
        # Told of one process it does not wait for all, which no signal could end.
        store, _, _ = next(rendezvous("env://", processes.rank(), 1, timeout=timedelta(seconds=_CONNECT_S)))
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error
    store.set_timeout(timedelta(seconds=_ANSWER_S))
    return store


def _wait_for_main() -> None:
    """Return when somebody listens where the main process is to be; torch would fill the terminal while it waits."""
    address, port = os.environ.get("MASTER_ADDR", ""), whole_number(os.environ.get("MASTER_PORT", ""))
    deadline = time.monotonic() + _wait_s
    while address and port is not None:
        try:
            socket.create_connection((address, port), timeout=_CONNECT_S).close()
            return
        except (OSError, OverflowError):
            if time.monotonic() > deadline:
                raise _absent([0]) from None
            time.sleep(10 * _POLL_S)


@cache
def _await_all() -> None:
    """Return when all processes have appeared. Raises ToolError if some have not in time."""
    deadline = time.monotonic() + _wait_s
    missing = [*range(processes.count())]
    while missing := [rank for rank in missing if not _asked(lambda store, rank=rank: store.check([_here(rank)]))]:
        check()
        if time.monotonic() > deadline:
            raise _absent(missing)
        time.sleep(_POLL_S)


def _here(rank: int) -> str:
    return f"here/{rank}"


def _absent(missing: list[int]) -> ToolError:
    shown = " ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
    return ToolError(
        f"of {processes.count()} processes {len(missing)} did not appear in {_wait_s:g} s: {shown}",
        hint="start all of them, for example by `torchrun --nproc-per-node 2 -m circuitcli ...`, or unset RANK and "
        "WORLD_SIZE; --set wait_s=N waits longer",
    )


def _set(key: str, value: Any) -> None:
    _asked(lambda store: store.set(key, json.dumps(value)))


def _awaited(key: str) -> Any:
    # Asked again and again: a wait inside the store could not be interrupted and would not hear of failures.
    while not _asked(lambda store: store.check([key])):
        check()
        time.sleep(_POLL_S)
    return json.loads(_asked(lambda store: store.get(key)))


def _asked(question: Any) -> Any:
    try:
        return question(_store())
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: Exception) -> ToolError:
    return ToolError(
        f"the processes of this command have lost each other: {first_line(error)}",
        hint=f"see the messages of the launcher; {how_to_go_on()}",
    )
