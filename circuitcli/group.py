"""What the processes of one command tell each other: values, who failed, and the group that adds up their tensors.

Every process must make the same calls in the same order. Waiting has no limit, ends when a signal comes, and ends with
the error of the first process that failed. A process alone pays nothing: no torch is imported for it.
"""

import json
import os
import time
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from circuitcli import processes
from circuitcli.errors import CircuitError, ExitStatus, ToolError, first_line, how_to_go_on

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_POLL_S = 0.02
_FAILURE = "failure"
_numbers = count()


def gather(value: T) -> list[T]:
    """The value of each process, in the order of their numbers. Values are those of JSON."""
    if processes.count() == 1:
        return [value]
    number = next(_numbers)
    keys = [f"{number}/{rank}" for rank in range(processes.count())]
    _set(keys[processes.rank()], value)
    return [_awaited(key) for key in keys]


def share(value: T) -> T:
    """The main process's value, in all of them; what the others give is not looked at. Values are those of JSON."""
    if processes.count() == 1:
        return value
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
    """Tell all processes why this one fails, unless another has told before."""
    content = {"rank": processes.rank(), "message": message, "hint": hint, "status": status}
    _asked(lambda store: store.compare_set(_FAILURE, "", json.dumps(content)))


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
    own = dist.get_default_backend_for_device(device)
    try:
        dist.init_process_group(
            # What of a step is known on the CPU is sent from there, which the back ends of GPUs refuse.
            own if own == "gloo" else f"cpu:gloo,{device.type}:{own}",
            store=dist.PrefixStore("tensors", _store()),
            rank=processes.rank(),
            world_size=processes.count(),
            device_id=None if own == "gloo" else device,
        )
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error


@cache
def _store() -> Any:
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", processes.rank(), processes.count()))
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error
    # A launcher that starts the processes again may keep its store.
    return PrefixStore(f"circuit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


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
