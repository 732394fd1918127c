"""One training from settings and a cache to trained coders, on rows that are shared out to processes or not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from circuitcli import processes
from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.saes.base import SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.trainable import Batch
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.joint import joined
from circuitcli.training.log import METRICS, MetricsLog
from circuitcli.training.mlps import mlps_between
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import END_TO_END, JOINT, Plan, read_hooks
from circuitcli.training.plan import pool_tokens as tokens_in_pool
from circuitcli.training.ranks import ALONE, AllRanks
from circuitcli.training.texts import then_texts, words
from circuitcli.training.trackers.tracker import Tracker
from circuitcli.training.trainer import Batches, Trainer
from circuitcli.training.untrained import CALIBRATION_TOKENS, calibrate, new_optimisers


def _nothing_known(name: str) -> bool:
    return False


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where its state is.

    settings: what all variants share; variants: settings by the name that they have among those of a sweep. model:
    gives the model that the activations came from, for what learns from it. logs: the folder in which each SAE has a
    folder for its metrics. is_known: whether the SAE of a name is finished already, but for its weights. starts: coders
    that take the place of random ones, by what they read.
    """

    settings: Settings
    variants: Mapping[str, Settings]
    cache: ActivationCache
    plan: Plan
    device: torch.device
    checkpoints: Checkpoints
    model: Callable[[], LanguageModel]
    logs: Path
    trackers: Sequence[Tracker] = ()
    is_known: Callable[[str], bool] = _nothing_known
    starts: Mapping[HookPoint, SparseCoder] = field(default_factory=dict)

    @property
    def shares_rows(self) -> bool:
        """Whether processes share the rows of each batch, not the SAEs."""
        return processes.count() > 1 and self.settings.train.parallel == "data"

    def trained(self) -> list[CoderOptimiser]:
        """Those of this process, from a checkpoint if there is one. Raises CircuitError if a loss is not finite."""
        optimisers = self._untrained()
        self._train(optimisers)
        if self.settings.train.keep == "best":
            for optimiser in optimisers:
                optimiser.restore_best()
        self._calibrate(optimisers)
        return optimisers

    def _untrained(self) -> list[CoderOptimiser]:
        ranks = AllRanks() if processes.count() > 1 else ALONE
        optimisers = new_optimisers(
            self.variants,
            self.cache,
            self.batches(self.cache.hooks),
            self.device,
            resumes=self.checkpoints.step() > 0,
            share=(0, 1) if self.shares_rows else (ranks.rank, ranks.n),
            mlps=mlps_between(lambda: self.model().adapter, self.cache, self.variants.values(), self.device),
            starts=self.starts,
        )
        for optimiser in optimisers:
            optimiser.trainable.ranks = ranks if self.shares_rows else ALONE
        if self.settings.train.objective != JOINT:
            return optimisers
        train = self.settings.train
        return [joined(optimisers, self.model(), weight=train.regularisation, model_rate=train.model_rate)]

    def _texts(self, optimisers: Sequence[CoderOptimiser], rows: ShuffledBatches) -> Batches:
        """What is learned from: rows, or text that the model reads."""
        objective = self.settings.train.objective
        if objective == JOINT:
            return words(optimisers[0], self.cache, self.plan, seed=self.settings.seed)
        if objective == END_TO_END:
            return then_texts(self.model(), self.cache, self.plan, rows, settings=self.settings)
        return rows

    def _train(self, optimisers: Sequence[CoderOptimiser]) -> None:
        train, hooks = self.settings.train, _hooks_of(optimisers)
        names = [one.name_of(hook) for one in optimisers for hook in one.trainable.sae_hooks]
        if self.shares_rows and not processes.is_main():
            names = []
        rows = self.batches(hooks)
        Trainer(
            optimisers,
            self._texts(optimisers, rows),
            batch_size=self.plan.batch_size,
            checkpoints=self.checkpoints,
            checkpoint_steps=max(1, train.checkpoint_tokens // self.plan.batch_size),
            logs={name: MetricsLog(self.logs / name / METRICS) for name in names},
            trackers=self.trackers,
            ranks=AllRanks() if processes.count() > 1 else ALONE,
            shares_rows=self.shares_rows,
            held_out=(lambda: self._held_out(hooks)) if train.keep == "best" else None,
            tf32=train.tf32,
        ).run()

    def _calibrate(self, optimisers: Sequence[CoderOptimiser]) -> None:
        """Set what is set after training, but for SAEs that are finished already."""
        left = [
            one
            for one in optimisers
            if one.trainable.needs_calibration
            and not all(self.is_known(one.name_of(hook)) for hook in one.trainable.sae_hooks)
        ]
        if left:
            calibrate(left, self.batches(_hooks_of(left), most_tokens=CALIBRATION_TOKENS))

    def batches(self, hooks: Sequence[HookPoint], *, most_tokens: int | None = None) -> ShuffledBatches:
        """The shuffled rows; most_tokens: fewer than are trained on, from a pool that holds no more."""
        pool, n_tokens, settings = self.pool_tokens, self.plan.tokens, self.settings
        if most_tokens is not None:
            n_tokens = min(n_tokens, max(most_tokens, self.plan.batch_size))
            pool = min(pool, 2 * n_tokens)
        return ShuffledBatches(
            self.cache,
            hooks=hooks,
            batch_size=self.plan.batch_size,
            n_tokens=n_tokens,
            seed=settings.seed,
            pool_tokens=pool,
            stop_row=self.plan.stop_row,
        )

    @property
    def pool_tokens(self) -> int:
        """Rows that are shuffled together: for all hook points that are trained on, by whichever process, as the order
        of all rows depends on it."""
        hooks = read_hooks({settings.sae.architecture for settings in self.variants.values()}, self.cache.hooks)
        row_bytes = sum(self.cache.d_model(hook) * self.cache.dtype(hook).itemsize for hook in hooks)
        return tokens_in_pool(self.settings, row_bytes=row_bytes, batch_size=self.plan.batch_size)

    def _held_out(self, hooks: Sequence[HookPoint]) -> Iterator[Batch]:
        """All rows that training does not see, in order."""
        rows = self.plan.held_out_rows
        for piece in self.cache.pieces(rows.start, rows.stop, size=self.plan.batch_size):
            yield {hook: self.cache.finite_rows(hook, *piece) for hook in hooks}


def _hooks_of(optimisers: Sequence[CoderOptimiser]) -> list[HookPoint]:
    return sorted({hook for one in optimisers for hook in one.trainable.hooks})
