"""Checkpoints of a training run: one directory for all hook points, complete or not there.

    RUN/saes/checkpoint/step-00000244/{resid.9.safetensors, ..., state.json}

A directory gets its name when all in it is on the disk, and the one before is removed after that. There is no state of
random numbers to keep: batches and first weights follow from the seed and the step.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from circuitcli import group, processes
from circuitcli.errors import InputError
from circuitcli.runs import write_error
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.training.learner import Learner

_NAME = re.compile(r"step-\d{8,}")
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a training run keeps its state; ``fingerprint`` says which run it is."""

    directory: Path
    fingerprint: str

    def save(self, step: int, learners: Iterable[Learner]) -> None:
        """Keep the state after ``step`` steps, and it alone. Raises InputError if the disk takes no more.

        Of several processes each gives the learners whose state it alone has.
        """
        whole = self.directory / f"step-{step:08d}"
        partial = self.directory / f"{whole.name}.partial"
        try:
            if processes.is_main():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            group.barrier()
            for learner in learners:
                path = partial / f"{learner.name}.safetensors"
                path.parent.mkdir(exist_ok=True)
                save_tensors(learner.state(), path)
            group.barrier()
            if processes.is_main():
                self._publish(partial, whole, step)
            group.barrier()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise write_error(whole, error) from None

    def _publish(self, partial: Path, whole: Path, step: int) -> None:
        """Bring all to the disk, give it its name, and remove what was there before."""
        (partial / _STATE).write_text(json.dumps({"step": step, "fingerprint": self.fingerprint}) + "\n")
        for file in partial.rglob("*"):
            _sync(file)
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        _sync(self.directory)
        self._remove_all_but(whole)

    def load(self, learners: Iterable[Learner]) -> int:
        """Put the learners where they were and return the number of steps done; 0 without a checkpoint of this run.

        Raises InputError if the checkpoint is damaged.
        """
        step = self.step()
        path = self.directory / f"step-{step:08d}"
        for learner in learners if step else ():
            file = path / f"{learner.name}.safetensors"
            try:
                learner.load_state(load_file(file))
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                raise InputError(f"cannot go on from {file}: {error}", hint="train again with --force") from None
        return step

    def step(self) -> int:
        """Steps done at the newest checkpoint of this run; 0 if there is none."""
        names = sorted(path.name for path in self.directory.glob("step-*") if _NAME.fullmatch(path.name))
        if not names:
            return 0
        path = self.directory / names[-1] / _STATE
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}", hint="train again with --force") from None
        return int(state["step"]) if state["fingerprint"] == self.fingerprint else 0

    def remove(self) -> None:
        """Remove all checkpoints, of whatever run."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_all_but(self, kept: Path) -> None:
        for path in self.directory.iterdir():
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
