"""Training the autoencoders of all hook points in one pass over the shuffled cache."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from circuitcli import progress
from circuitcli.errors import CircuitError
from circuitcli.hookpoints import HookPoint
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.interrupt import postponed_signals
from circuitcli.training.learner import Learner, Step
from circuitcli.training.log import Line, MetricsLog
from circuitcli.training.memory import peak_memory_mib
from circuitcli.training.trackers.tracker import Tracker

# Lines in metrics.jsonl of a long run.
N_LINES = 250


@runtime_checkable
class Batches(Protocol):
    """A fixed sequence of batches that can be entered at any step."""

    n_steps: int

    def from_step(self, step: int) -> Iterator[dict[HookPoint, Float[Tensor, "batch d_model"]]]:
        """The batches of this step and all later ones; the same rows for all hook points."""
        ...


@dataclass
class Trainer:
    """All that a training run works on; ``done`` counts the steps behind it."""

    learners: Sequence[Learner]
    batches: Batches
    batch_size: int
    checkpoints: Checkpoints
    checkpoint_steps: int
    logs: Mapping[HookPoint, MetricsLog]
    trackers: Sequence[Tracker] = ()
    done: int = 0
    # The last step that an earlier, killed process logged: it is not logged again to trackers, which cannot go back.
    logged: int = 0

    def run(self) -> None:
        """Train to the end, from the checkpoint if there is one, and leave a checkpoint of the end.

        An interrupt takes effect after the step that it came in, when a checkpoint is written.
        Raises CircuitError, naming the hook point, if a loss is no longer finite.
        """
        self.done = self.checkpoints.load(self.learners)
        self.logged = min((log.rewind(self.done) for log in self.logs.values()), default=0)
        if self.done == self.batches.n_steps:
            return
        total, done = self.batches.n_steps * self.batch_size, self.done * self.batch_size
        with progress.task("train", total=total, unit="tokens", done=done) as advance:
            with postponed_signals() as postponed:
                self._loop(advance, lambda: postponed.number is not None)

    def _loop(self, advance: progress.Advance, is_stopped: Callable[[], bool]) -> None:
        is_whole = True
        logged, since = self.done, time.perf_counter()
        try:
            for batch in self.batches.from_step(self.done):
                is_whole = False
                steps = [learner.step(batch[learner.hook], index=self.done) for learner in self.learners]
                self.done += 1
                is_whole = True
                if self._is_due(self.line_steps):
                    self._log(steps, (self.done - logged) * self.batch_size / (time.perf_counter() - since))
                    logged, since = self.done, time.perf_counter()
                stops = is_stopped()
                if self._is_due(self.checkpoint_steps) or stops:
                    self._save(steps)
                advance(self.batch_size, note=f"loss {_mean_loss(steps):.4f}")
                if stops:
                    return
        except (KeyboardInterrupt, SystemExit):
            if is_whole and self.done:
                self.checkpoints.save(self.done, self.learners)
            raise

    @property
    def line_steps(self) -> int:
        """Steps between two lines of metrics."""
        return max(1, self.batches.n_steps // N_LINES)

    def _is_due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.batches.n_steps

    def _save(self, steps: Sequence[Step]) -> None:
        self._check(steps)
        self.checkpoints.save(self.done, self.learners)

    def _check(self, steps: Sequence[Step]) -> None:
        for learner, step in zip(self.learners, steps, strict=True):
            if not math.isfinite(step.loss):
                raise CircuitError(
                    f"the loss at {learner.hook} is {float(step.loss)} after {self.done} steps",
                    hint="lower the learning rate: --set train.learning_rate=1e-4",
                )

    def _log(self, steps: Sequence[Step], tokens_per_s: float) -> None:
        self._check(steps)
        numbers = {}
        for learner, step in zip(self.learners, steps, strict=True):
            line = Line(
                step=self.done,
                tokens=self.done * self.batch_size,
                loss=float(step.loss),
                fvu=float(step.fvu),
                l0=float(step.l0),
                dead=learner.silence.share,
                learning_rate=learner.recipe.schedule.rate(self.done - 1),
                tokens_per_s=round(tokens_per_s, 1),
                memory_mib=peak_memory_mib(learner.device),
            )
            self.logs[learner.hook].append(line.numbers())
            numbers[str(learner.hook)] = {name: value for name, value in line.numbers().items() if name != "step"}
        if self.done > self.logged:
            for tracker in self.trackers:
                tracker.log(self.done, numbers)


def _mean_loss(steps: Sequence[Step]) -> float:
    return sum(float(step.loss) for step in steps) / len(steps)
