"""A stack learns, from a checkpoint if there is one; what is broken off goes on with the same bits."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from circuitcli import progress
from circuitcli.errors import CircuitError, InputError, first_line
from circuitcli.runs import make_folder, write_error
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.toys.ground_truth import GroundTruth
from circuitcli.toys.stack import Stack
from circuitcli.training.interrupt import postponed_signals

# Seconds between two checkpoints at most.
SAVE_S = 120.0
_DONE = "done"


@dataclass(frozen=True)
class Checkpoint:
    """One file, whole or not there, that says which training it belongs to."""

    path: Path

    def save(self, stack: Stack) -> None:
        """Keep the state. Raises InputError if the disk takes no more."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        make_folder(self.path.parent)
        try:
            save_tensors(stack.state() | {_DONE: torch.tensor(stack.done)}, partial)
            partial.replace(self.path)
        except OSError as error:
            raise write_error(self.path, error) from None

    def load(self, stack: Stack) -> None:
        """Put the stack where it was, if there is a checkpoint. Raises InputError if that is damaged."""
        if not self.path.is_file():
            return
        try:
            with safe_open(self.path, framework="pt") as stream:
                state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            stack.load_state(state, done=int(state[_DONE]))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            hint = "begin again with --force"
            raise InputError(f"cannot go on from {self.path}: {first_line(error)}", hint=hint) from None

    def remove(self) -> None:
        """It is not needed any more, or belongs to something else."""
        self.path.unlink(missing_ok=True)


def train(stack: Stack, truth: GroundTruth, checkpoint: Checkpoint | None = None) -> None:
    """Train to the end, from the checkpoint on if there is one; without a place for it none is kept.

    An interrupt takes effect after the step that it came in, when a checkpoint is written. Raises CircuitError if a
    weight is no longer finite.
    """
    if checkpoint is not None:
        checkpoint.load(stack)
    total = stack.settings.steps
    with progress.task("train", total=total, unit="steps", done=stack.done) as advance:
        with postponed_signals() as postponed:
            _loop(stack, truth, checkpoint, advance, lambda: postponed.number is not None)
    if stack.done < total:
        raise SystemExit(128 + signal.SIGTERM)


def _loop(
    stack: Stack,
    truth: GroundTruth,
    checkpoint: Checkpoint | None,
    advance: progress.Advance,
    is_stopped: Callable[[], bool],
) -> None:
    device, settings = stack.parameters["W_enc"].device, stack.settings
    saves_at = time.perf_counter() + SAVE_S
    while stack.done < settings.steps:
        stack.step(truth.batch(stack.done).x.to(device))
        advance(1)
        stops = is_stopped()
        if stops or stack.done % settings.checkpoint_steps == 0 or time.perf_counter() > saves_at:
            check_finite(stack)
            if checkpoint is not None:
                checkpoint.save(stack)
            saves_at = time.perf_counter() + SAVE_S
        if stops:
            return
    check_finite(stack)


def check_finite(stack: Stack) -> None:
    """Raise CircuitError, naming the autoencoder, if a weight is no longer a number."""
    for model, own in stack.dictionaries():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (own.W_enc, own.b_enc, own.W_dec)):
            raise CircuitError(
                f"the weights of {model.name} are not finite after {stack.done} steps",
                hint="lower the learning rate, and begin again: --set toy.learning_rate=1e-4 --force",
            )
