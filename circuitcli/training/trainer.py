"""Training the autoencoders of all hook points in one pass over the shuffled cache."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli import group, progress
from circuitcli.errors import CircuitError
from circuitcli.hookpoints import HookPoint
from circuitcli.training.architectures.trainable import Batch, StepResult
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.interrupt import postponed_signals
from circuitcli.training.log import Line, MetricsLog
from circuitcli.training.memory import peak_memory_mib
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import line_steps, look_steps
from circuitcli.training.products import tensor_cores
from circuitcli.training.ranks import ALONE, Ranks
from circuitcli.training.trackers.tracker import Tracker
from circuitcli.training.transfer import on_device

# Seconds between two checkpoints at most, and their share of the time where they take long.
SAVE_S, LARGEST_SAVING_SHARE = 300.0, 0.05
# Seconds between two looks at the loss, for people.
NOTE_S = 0.5


@runtime_checkable
class Batches(Protocol):
    """A fixed sequence of batches that can be entered at any step."""

    n_steps: int

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of this step and all later ones; the same rows for all hook points."""
        ...


@dataclass
class Trainer:
    """All that a training run works on, with logs by the name of an SAE; ``done`` counts the steps behind it.

    Of several processes that share rows one alone has logs and trackers.
    """

    optimisers: Sequence[CoderOptimiser]
    batches: Batches
    batch_size: int
    checkpoints: Checkpoints
    checkpoint_steps: int
    logs: Mapping[str, MetricsLog]
    trackers: Sequence[Tracker] = ()
    # The processes that train together: each a part of every batch's rows, or each some of the optimisers.
    ranks: Ranks = ALONE
    shares_rows: bool = False
    # What training does not see, again with each call: the weights that do best on it are remembered.
    held_out: Callable[[], Iterable[Batch]] | None = None
    # Whether NVIDIA's GPUs may multiply with fewer bits.
    tf32: bool = True
    done: int = 0
    # The last step that an earlier, killed process logged: it is not logged again to trackers, which cannot go back.
    logged: int = 0

    def run(self) -> None:
        """Train to the end, from the checkpoint if there is one, and leave a checkpoint of the end.

        An interrupt takes effect after the step that it came in, when a checkpoint is written; it never returns before
        the end. Raises CircuitError, naming the hook point, if a loss is no longer finite.
        """
        self.done = self.checkpoints.load(self.optimisers)
        self.logged = min((log.rewind(self.done) for log in self.logs.values()), default=0)
        if self.done == self.batches.n_steps:
            return
        total, done = self.batches.n_steps * self.batch_size, self.done * self.batch_size
        with progress.task("train", total=total, unit="tokens", done=done) as advance:
            with postponed_signals() as postponed, tensor_cores(self._device, enabled=self.tf32):
                self._loop(advance, lambda: postponed.number is not None)
        if self.done < self.batches.n_steps:
            # The signal came to another process, or whoever takes it here let it pass: this is no finished training.
            raise SystemExit(128 + signal.SIGTERM)

    def _loop(self, advance: progress.Advance, is_stopped: Callable[[], bool]) -> None:
        is_whole = True
        logged, since = self.done, time.perf_counter()
        note, noted = "", 0.0
        saves_at = since + SAVE_S
        try:
            for batch in on_device(self.batches.from_step(self.done), self._device):
                is_whole = False
                steps = self._step(batch)
                self.done += 1
                looks = self._look() if self._is_due(look_steps(self.batches.n_steps)) else {}
                stops, is_late = self._agreed(is_stopped(), time.perf_counter() > saves_at)
                if self._is_due(line_steps(self.batches.n_steps)):
                    self._log(steps, looks, (self.done - logged) * self.batch_size / (time.perf_counter() - since))
                    logged, since = self.done, time.perf_counter()
                # Going on from here, neither look nor line would be made up for.
                is_whole = True
                if self._is_due(self.checkpoint_steps) or is_late or stops:
                    saves_at = self._save(steps)
                # To know the loss is to wait for the device.
                if (now := time.perf_counter()) - noted > NOTE_S:
                    note, noted = f"loss {_mean_loss(steps):.4f}", now
                advance(self.batch_size, note=note)
                if stops:
                    return
        except (KeyboardInterrupt, SystemExit):
            # Of several processes the others may be in the middle of a step.
            if is_whole and self.done and self.ranks.n == 1:
                self.checkpoints.save(self.done, self.optimisers)
            raise

    @property
    def _device(self) -> torch.device:
        # Of more processes than SAEs some have none.
        return self.optimisers[0].device if self.optimisers else torch.device("cpu")

    def _is_due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.batches.n_steps

    def _step(self, batch: Batch) -> dict[str, StepResult]:
        """What each SAE made of the batch, by its name."""
        if self.shares_rows:
            batch = {hook: rows[self.ranks.rank :: self.ranks.n] for hook, rows in batch.items()}
        return {
            optimiser.name_of(hook): result
            for optimiser in self.optimisers
            for hook, result in optimiser.step(batch, index=self.done).items()
        }

    def _look(self) -> dict[str, float]:
        """Remember the weights that do best on held-out tokens; each optimiser's loss there, by its name."""
        if self.held_out is None or not self.optimisers:
            return {}
        sums, n_rows = dict.fromkeys((optimiser.name for optimiser in self.optimisers), 0.0), 0
        for batch in self.held_out():
            n = len(next(iter(batch.values())))
            n_rows += n
            for optimiser in self.optimisers:
                sums[optimiser.name] += n * optimiser.full_loss(batch)
        losses = {name: total / n_rows for name, total in sums.items()}
        for optimiser in self.optimisers:
            optimiser.keep_if_best(losses[optimiser.name], step=self.done)
        return losses

    def _save(self, steps: Mapping[str, StepResult]) -> float:
        """Write a checkpoint. Returns when the next one is to be written at the latest."""
        self._check(self._averaged(steps))
        is_written_elsewhere = self.shares_rows and self.ranks.rank > 0
        begun = time.perf_counter()
        self.checkpoints.save(self.done, [] if is_written_elsewhere else self.optimisers)
        now = time.perf_counter()
        return now + max(SAVE_S, (now - begun) / LARGEST_SAVING_SHARE)

    def _averaged(self, steps: Mapping[str, StepResult]) -> Mapping[str, StepResult]:
        """What all processes made of their parts of the batch."""
        if not self.shares_rows:
            return steps
        return {
            coder: StepResult(
                {name: self._mean(part) for name, part in step.losses.items()},
                self._mean(step.fvu),
                self._mean(step.l0),
                {name: self._mean(value) for name, value in step.measures.items()},
            )
            for coder, step in steps.items()
        }

    def _mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self.ranks.sum(value.float()) / self.ranks.n

    def _agreed(self, stops: bool, is_late: bool) -> tuple[bool, bool]:
        """Whether any process is to stop or to save: all do so after the same step."""
        if self.ranks.n == 1:
            return stops, is_late
        any_stops, any_is_late = (self.ranks.sum(torch.tensor([float(stops), float(is_late)])) > 0).tolist()
        return any_stops, any_is_late

    def _check(self, steps: Mapping[str, StepResult]) -> None:
        for name, step in steps.items():
            if not math.isfinite(loss := total(step)):
                raise CircuitError(
                    f"the loss at {name} is {loss} after {self.done} steps",
                    hint="lower the learning rate, and begin again: --set train.learning_rate=1e-4 --force; "
                    "`circuit collect --verify` tells whether the activations are damaged",
                )

    def _log(self, steps: Mapping[str, StepResult], looks: Mapping[str, float], tokens_per_s: float) -> None:
        steps = self._averaged(steps)
        self._check(steps)
        numbers: dict[str, Any] = {}
        for optimiser in self.optimisers:
            for hook in optimiser.trainable.sae_hooks:
                name = optimiser.name_of(hook)
                line = self._line(optimiser, hook, steps[name], tokens_per_s, looks.get(optimiser.name)).numbers()
                if name in self.logs:
                    self.logs[name].append(line)
                numbers[name] = {key: value for key, value in line.items() if key != "step"}
        if self.ranks.n > 1 and not self.shares_rows:
            numbers = {name: line for part in group.gather(numbers) for name, line in part.items()}
        if self.done > self.logged:
            for tracker in self.trackers:
                tracker.log(self.done, numbers)

    def _line(
        self, optimiser: CoderOptimiser, hook: HookPoint, step: StepResult, tokens_per_s: float, look: float | None
    ) -> Line:
        return Line(
            step=self.done,
            tokens=self.done * self.batch_size,
            loss=total(step),
            fvu=float(step.fvu),
            l0=float(step.l0),
            dead=optimiser.trainable.dead_share(hook),
            learning_rate=optimiser.config.schedule.rate(self.done - 1),
            tokens_per_s=round(tokens_per_s, 1),
            memory_mib=peak_memory_mib(optimiser.device),
            parts={name: float(part.detach()) for name, part in step.losses.items()} if len(step.losses) > 1 else {},
            measures={name: float(value) for name, value in step.measures.items()},
            held_out=look,
        )


def total(step: StepResult) -> float:
    """The loss that is minimised."""
    return float(torch.stack([part.detach() for part in step.losses.values()]).sum())


def _mean_loss(steps: Mapping[str, StepResult]) -> float:
    return sum(map(total, steps.values())) / len(steps)
