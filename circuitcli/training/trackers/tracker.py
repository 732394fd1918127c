"""What a tracker is, and opening those that were asked for. Their packages are extras, imported where they are used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from circuitcli.errors import ToolError
from circuitcli.training.log import Numbers

PROJECT = "circuit"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a training.

    directory: where files may go. name: the same for a training that goes on, another one for other settings.
    starts_over: whether nothing is kept of what a training of that name has logged before. settings: by name.
    """

    directory: Path
    name: str
    starts_over: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tracker(Protocol):
    """Takes the numbers of a training, step by step."""

    def log(self, step: int, numbers: Mapping[str, Numbers]) -> None:
        """Take the numbers of each autoencoder after so many steps; steps rise."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is left; ``failed`` says that the training did not reach its end."""
        ...


def flat(numbers: Mapping[str, Numbers]) -> Numbers:
    """The numbers of all autoencoders in one mapping, as ``resid.9/fvu``."""
    return {f"{name}/{key}": value for name, metrics in numbers.items() for key, value in metrics.items()}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ToolError if the package of one is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ToolError(
                f"--log {name} needs the package {name}, which is not installed",
                hint=f"pip install '.[{name}]'",
            )


@contextmanager
def trackers(names: Sequence[str], run: TrackedRun) -> Iterator[list[Tracker]]:
    """Open trackers, and close them after the training. Raises ToolError if one cannot be opened."""
    check_trackers(names)
    opened: list[Tracker] = []
    try:
        for name in names:
            opened.append(import_module(f"circuitcli.training.trackers.{name}").opened(run))
        yield opened
    except BaseException:
        for tracker in opened:
            tracker.close(failed=True)
        raise
    for tracker in opened:
        tracker.close(failed=False)
