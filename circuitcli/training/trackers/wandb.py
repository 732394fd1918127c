"""Weights & Biases: one run for a training. Without a network, ``WANDB_MODE=offline`` keeps it for ``wandb sync``."""

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from circuitcli.errors import ToolError, first_line
from circuitcli.runs import make_folder
from circuitcli.training.log import Numbers
from circuitcli.training.trackers.tracker import PROJECT, TrackedRun, flat

HINT = "run `wandb login`, or set WANDB_MODE=offline and sync later"


class WeightsAndBiases:
    """One run; the names of the numbers begin with the autoencoder's."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, numbers: Mapping[str, Numbers]) -> None:
        """Hand the numbers over; a process of wandb sends them."""
        self.run.log(flat(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until all is sent or written."""
        with redirect_stdout(sys.stderr):
            self.run.finish(exit_code=int(failed))


def opened(run: TrackedRun) -> WeightsAndBiases:
    """The run of that name goes on; a training that starts over replaces it.

    Raises ToolError if nobody is logged in, without asking for a key, and if the service cannot be reached.
    """
    import wandb

    directory = Path(os.environ.get("WANDB_DIR") or run.directory)
    try:
        make_folder(directory)
        with redirect_stdout(sys.stderr):
            if _is_online(wandb) and not wandb.login(prompt=False, verify=False):
                raise ToolError("wandb has no login", hint=HINT)
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=run.name,
                name=run.name,
                dir=str(directory),
                resume=None if run.starts_over else "allow",
                config=dict(run.settings),
                settings=wandb.Settings(console="off", silent=True),
            )
    except (wandb.errors.Error, OSError) as error:
        raise ToolError(f"wandb cannot begin a run: {first_line(error)}", hint=HINT) from None
    return WeightsAndBiases(run)


def _is_online(wandb: Any) -> bool:
    return wandb.setup().settings.mode in ("online", "shared")
