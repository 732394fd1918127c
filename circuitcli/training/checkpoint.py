"""Checkpoints of a training run: one directory for all hook points, complete or not there.

    RUN/saes/checkpoint/step-00000244/{resid.9.safetensors, ..., state.json}

A directory gets its name when all in it is on the disk, and loses it before anything in it is removed: one that lacks
a file that its state.json names counts as none. There is no state of random numbers to keep: batches and first weights
follow from the seed and the step.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcli import group, processes
from circuitcli.errors import InputError, first_line
from circuitcli.faults import checked
from circuitcli.reading import read_object
from circuitcli.runs import make_folder, write_error
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.schema import Count, PathInRun, Word

_NAME = re.compile(r"step-\d{8,}")
_STATE = "state.json"
_AGAIN = "train again with --force"


@runtime_checkable
class Stateful(Protocol):
    """What learns, with a name that is a file's; it goes on bit for bit where its state is put back."""

    @property
    def name(self) -> str: ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Checkpoints:
    """Where a training run keeps its state; ``fingerprint`` says which run it is."""

    directory: Path
    fingerprint: str

    def save(self, step: int, optimisers: Iterable[Stateful]) -> None:
        """Keep the state after ``step`` steps, and it alone. Raises InputError if the disk takes no more.

        Of several processes each gives the optimisers whose state it alone has.
        """
        whole = self.directory / f"step-{step:08d}"
        partial = self.directory / f"{whole.name}.partial"
        try:
            if processes.is_main():
                shutil.rmtree(partial, ignore_errors=True)
                make_folder(partial)
            group.barrier()
            for optimiser in optimisers:
                path = partial / f"{optimiser.name}.safetensors"
                path.parent.mkdir(exist_ok=True)
                save_tensors(optimiser.state(), path)
            group.barrier()
            if processes.is_main():
                self._publish(partial, whole, step)
            group.barrier()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise write_error(whole, error) from None

    def _publish(self, partial: Path, whole: Path, step: int) -> None:
        """Bring all to the disk, give it its name, and remove what was there before."""
        files = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*.safetensors"))
        state = {"step": step, "fingerprint": self.fingerprint, "files": files}
        (partial / _STATE).write_text(json.dumps(state) + "\n")
        for file in partial.rglob("*"):
            _sync(file)
        _remove(whole)
        partial.rename(whole)
        _sync(self.directory)
        for path in self.directory.glob("step-*"):
            if path != whole:
                _remove(path)

    def load(self, optimisers: Iterable[Stateful]) -> int:
        """Put the optimisers where they were and return the number of steps done; 0 without a checkpoint of this run.

        Raises InputError if the checkpoint is damaged.
        """
        step = self.step()
        path = self.directory / f"step-{step:08d}"
        for optimiser in optimisers if step else ():
            file = path / f"{optimiser.name}.safetensors"
            try:
                optimiser.load_state(load_file(file))
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                raise InputError(f"cannot go on from {file}: {first_line(error)}", hint=_AGAIN) from None
        return step

    def step(self) -> int:
        """Steps done at the newest checkpoint of this run; 0 if there is none.

        Raises InputError if what the newest whole one says of itself cannot be read.
        """
        names = sorted(path.name for path in self.directory.glob("step-*") if _NAME.fullmatch(path.name))
        for name in reversed(names):
            if (state := self._state(self.directory / name)) is not None:
                return state.step if state.fingerprint == self.fingerprint else 0
        return 0

    def _state(self, folder: Path) -> "_State | None":
        """What a checkpoint says of itself; None if a part is gone, as after a kill that came while it was removed."""
        path = folder / _STATE
        if not path.is_file():
            return None
        state = checked(_State, read_object(path, hint=_AGAIN), place=str(path), hint=_AGAIN)
        # Versions before this one did not name their files.
        is_whole = all((folder / file).is_file() for file in state.files) and any(folder.rglob("*.safetensors"))
        return state if is_whole else None


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    step: Count
    fingerprint: Word
    files: list[PathInRun] = []


def _remove(path: Path) -> None:
    """Take a checkpoint's name away before its files: a kill in between leaves nothing that looks like a checkpoint."""
    if _NAME.fullmatch(path.name) and path.exists():
        gone = path.with_name(f"{path.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        path = gone
    shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
