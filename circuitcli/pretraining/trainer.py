"""The training loop: resumable, and the same bit for bit whether or not it was interrupted."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from circuitcli import group, processes, progress
from circuitcli.errors import CircuitError
from circuitcli.pretraining import export
from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.optimiser import Learned, ModelOptimiser, learning_rate
from circuitcli.settings.pretrain import PretrainSettings, checkpoint_steps
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.interrupt import postponed_signals
from circuitcli.training.log import METRICS, MetricsLog, read_metrics
from circuitcli.training.memory import peak_memory_mib
from circuitcli.training.plan import line_steps
from circuitcli.training.products import tensor_cores
from circuitcli.training.trackers.tracker import Tracker

# Seconds between two states at most, and between two looks at the loss for people.
SAVE_S, NOTE_S = 300.0, 0.5
# The name of the model where trackers tell several things apart.
TRACKED = "model"
CHECKPOINTS = "checkpoints"


def folder_of(step: int) -> str:
    """The name of a checkpoint's directory."""
    return f"step{step}"


def losses_at(folder: Path) -> dict[int, float]:
    """Losses on held-out text by step, as the metrics of a training tell."""
    lines = read_metrics(folder / METRICS)
    return {int(line["step"]): line["validation_loss"] for line in lines if "validation_loss" in line}


@dataclass
class Trainer:
    """All that a training works on; ``done`` counts the steps behind it.

    folder: where metrics go. output: the directory of the model, below which checkpoints go. states: from where it
    goes on. Of several processes the main one alone writes.
    """

    optimiser: ModelOptimiser
    windows: Windows
    tokenizer: PreTrainedTokenizerFast
    states: Checkpoints
    folder: Path
    output: Path
    seed: int
    trackers: Sequence[Tracker] = ()
    done: int = 0
    _logged: int = 0
    # When the last line of metrics was written, and after which step.
    _since: float = field(default_factory=time.perf_counter)
    _last: int = 0

    @property
    def settings(self) -> PretrainSettings:
        """Those of the training."""
        return self.optimiser.settings

    @property
    def tokens_a_step(self) -> int:
        """What an optimiser step reads, in all processes."""
        return self.settings.batch_size * self.settings.accumulation * self.settings.context_length

    def run(self) -> None:
        """Train to the end, from the state if there is one.

        An interrupt takes effect after the step that it came in, when a state is written; it never returns before the
        end. Raises CircuitError if the loss is no longer finite, InputError for a damaged state.
        """
        self.done = self._last = self.states.load([self.optimiser])
        log = MetricsLog(self.folder / METRICS)
        if processes.is_main():
            self._logged = log.rewind(self.done)
        if not self.done:
            self._look(log, None)
        total = self.settings.steps * self.tokens_a_step
        with progress.task("pretrain", total=total, unit="tokens", done=self.done * self.tokens_a_step) as advance:
            with postponed_signals() as postponed, tensor_cores(self.optimiser.device, enabled=self.settings.tf32):
                with torch.random.fork_rng(enabled=self.settings.dropout > 0):
                    self._loop(log, advance, lambda: postponed.number is not None)
        if self.done < self.settings.steps:
            # The signal came to another process, or whoever takes it here let it pass: this is no finished training.
            raise SystemExit(128 + signal.SIGTERM)

    @cached_property
    def _keep(self) -> frozenset[int]:
        """Steps after which the model is kept as it is then."""
        return frozenset(checkpoint_steps(self.settings.checkpoints, n_steps=self.settings.steps))

    def _loop(self, log: MetricsLog, advance: progress.Advance, is_stopped: Callable[[], bool]) -> None:
        saves_at = time.perf_counter() + SAVE_S
        note, noted = "", 0.0
        self._since = time.perf_counter()
        while self.done < self.settings.steps:
            learned = self._step()
            stops, is_late = self._agreed(is_stopped(), time.perf_counter() > saves_at)
            looks = self.done in self._keep or self._is_due(self.settings.evaluate_every)
            if looks or self._is_due(line_steps(self.settings.steps)):
                self._look(log, learned, looks=looks)
            if stops or is_late or self._is_due(self.settings.save_every):
                self._save(learned)
                saves_at = time.perf_counter() + SAVE_S
            # To know the loss is to wait for the device.
            if (now := time.perf_counter()) - noted > NOTE_S:
                note, noted = f"loss {float(learned.loss):.3f}", now
            advance(self.tokens_a_step, note=note)
            if stops:
                return

    def _is_due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.settings.steps

    def _step(self) -> Learned:
        n = self.settings.accumulation
        batches = (self.windows.batch(self.done * n + number) for number in range(n))
        learned = self.optimiser.learn(batches, step=self.done, seed=self.seed)
        self.done += 1
        return learned

    def _agreed(self, stops: bool, is_late: bool) -> tuple[bool, bool]:
        """Whether any process is to stop or to save: all do so after the same step."""
        ranks = self.optimiser.ranks
        if ranks.n == 1:
            return stops, is_late
        any_stops, any_is_late = (ranks.sum(torch.tensor([float(stops), float(is_late)])) > 0).tolist()
        return any_stops, any_is_late

    def _save(self, learned: Learned) -> None:
        self._loss(learned)
        self.states.save(self.done, [self.optimiser] if processes.is_main() else [])

    def _loss(self, learned: Learned) -> float:
        """The mean of all processes. Raises CircuitError if it is not finite."""
        loss = float(self.optimiser.ranks.sum(learned.loss)) / self.optimiser.ranks.n
        if not math.isfinite(loss):
            raise CircuitError(
                f"the loss is {loss} after {self.done} steps",
                hint="lower the learning rate, and begin again: --set pretrain.learning_rate=1e-3 --force",
            )
        return loss

    def _look(self, log: MetricsLog, learned: Learned | None, *, looks: bool = True) -> None:
        """Add a line of metrics, with the loss on held-out text if it ``looks``, and keep what is to be kept."""
        loss = None if learned is None else self._loss(learned)
        if not processes.is_main():
            return group.check()
        numbers: dict[str, float | int] = {"step": self.done, "tokens": self.done * self.tokens_a_step}
        if learned is not None and loss is not None:
            numbers |= {"loss": loss, **self._measures(learned)}
        if looks:
            numbers["validation_loss"] = self._held_out_loss()
        if self.done in self._keep:
            self._export()
        log.append(numbers)
        if self.done > self._logged or not self.done:
            for tracker in self.trackers:
                tracker.log(self.done, {TRACKED: {name: v for name, v in numbers.items() if name != "step"}})
        self._last, self._since = self.done, time.perf_counter()

    def _measures(self, learned: Learned) -> dict[str, float | int]:
        seconds = time.perf_counter() - self._since
        return {
            "gradient_norm": float(learned.gradient_norm),
            "learning_rate": learning_rate(self.settings, step=self.done - 1),
            "tokens_per_s": round((self.done - self._last) * self.tokens_a_step / seconds, 1),
            "memory_mib": peak_memory_mib(self.optimiser.device),
        }

    def _held_out_loss(self) -> float:
        """The loss at this look; the weights are remembered if none had a smaller one and the best are wanted."""
        # Where losses are compared, all have the same number of bits.
        with tensor_cores(self.optimiser.device, enabled=False):
            loss = self.optimiser.evaluate(self.windows.held_out(n_batches=self.settings.evaluation_batches))
        if self.settings.keep == "best":
            self.optimiser.keep_if_best(loss)
        return loss

    def _export(self) -> None:
        name = folder_of(self.done)
        export.write_whole(
            self.optimiser.model,
            self.tokenizer,
            self.output / CHECKPOINTS / name,
            partial=self.folder / name,
            dtype=self.settings.dtype,
        )
