"""Trackio: a run in its local data base (``TRACKIO_DIR``); look at it with ``trackio show --project circuit``."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from circuitcli.errors import ToolError, first_line
from circuitcli.training.log import Numbers
from circuitcli.training.trackers.tracker import PROJECT, TrackedRun, flat


class Trackio:
    """One run; the names of the numbers begin with the autoencoder's."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, numbers: Mapping[str, Numbers]) -> None:
        """Hand the numbers over; a thread of Trackio writes them."""
        self.run.log(flat(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until all is written."""
        import trackio

        with _silence():
            # Not the run's own method: after that, Trackio would finish it again, and say so, when the process ends.
            trackio.finish()


def opened(run: TrackedRun) -> Trackio:
    """The run of that name goes on; a training that starts over gets a new one. Raises ToolError if it cannot be."""
    import trackio

    try:
        with _silence():
            run = trackio.init(
                PROJECT,
                name=run.name,
                resume="never" if run.starts_over else "allow",
                config=dict(run.settings),
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
    except Exception as error:
        raise ToolError(
            f"trackio cannot begin a run: {first_line(error)}", hint="train without --log trackio"
        ) from None
    return Trackio(run)


@contextmanager
def _silence() -> Iterator[None]:
    """Trackio talks on stdout, where records go."""
    with redirect_stdout(io.StringIO()):
        yield
