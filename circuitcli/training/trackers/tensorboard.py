"""TensorBoard: event files below RUN/logs/tensorboard, one folder for each autoencoder, so that curves lie over others.

Look at them with ``tensorboard --logdir RUN/logs/tensorboard``.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitcli.runs import make_folder, write_error
from circuitcli.training.log import Numbers
from circuitcli.training.trackers.tracker import TrackedRun

FOLDER = "tensorboard"


class TensorBoard:
    """One writer of event files for each autoencoder, opened when its first numbers come."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, Any] = {}

    def log(self, step: int, numbers: Mapping[str, Numbers]) -> None:
        """Write scalars, tagged by the names of the numbers, and flush them: a killed run leaves what it logged."""
        for name, metrics in numbers.items():
            writer = self._writer(name)
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, global_step=step)
            writer.flush()

    def _writer(self, name: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if name not in self._writers:
            self._writers[name] = SummaryWriter(self.directory / name)
        return self._writers[name]

    def close(self, *, failed: bool) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()


def opened(run: TrackedRun) -> TensorBoard:
    """The event files of a training that goes on are added to; one that starts over removes them."""
    directory = run.directory / FOLDER
    try:
        if run.starts_over and directory.exists():
            shutil.rmtree(directory)
        make_folder(directory)
    except OSError as error:
        raise write_error(directory, error) from None
    return TensorBoard(directory)
