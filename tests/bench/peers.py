"""Other libraries' TopK training, each through its own trainer with its own defaults, one batch at a time."""

import contextlib
import io
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments, TrainingConfig
from circuitcli.training.optimiser import CoderOptimiser, OptimiserConfig
from circuitcli.training.plan import default_batch_size, default_dead_tokens
from circuitcli.training.schedule import LearningRateSchedule, default_rate

HOOK = HookPoint(0, "resid")


@dataclass(frozen=True)
class Shape:
    """What is trained, and for how long."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    n_steps: int
    seed: int
    device: str = "cpu"


class Rows(Protocol):
    """Activations that are read as often as a library likes, always the same; a tensor is one."""

    def __len__(self) -> int: ...

    def split(self, n: int) -> Iterable[Tensor]:
        """So many at a time, any floating dtype."""


class Weights(NamedTuple):
    """TopK of ``(x - b_dec) @ W_enc + b_enc``, of which the positive part is decoded by unit rows or any others."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


class Peer(Protocol):
    """A library at work."""

    shape: Shape

    def step(self, x: Tensor, index: int) -> None:
        """Learn from raw activations."""

    def finished(self) -> Weights:
        """What was learned, for raw activations."""


class Ours:
    """`circuit train`, from the settings as they come."""

    def __init__(self, shape: Shape, train: Rows) -> None:
        self.shape = shape
        settings = Settings()
        tokens = shape.n_steps * shape.batch
        sae = settings.sae.model_copy(update={"architecture": "topk", "k": shape.k})
        config = TrainingConfig(sae, shape.d_sae, settings.train.auxk_weight, default_dead_tokens(tokens), shape.seed)
        # Of a short run's tokens we make more steps; a batch of the race is several of them.
        self.steps_in_batch = max(1, shape.batch // default_batch_size(tokens))
        n_steps = shape.n_steps * self.steps_in_batch
        peak = default_rate(shape.d_sae, n_steps=n_steps)
        schedule = LearningRateSchedule(peak, n_steps, settings.train.warmup, settings.train.decay)
        first = {HOOK: next(iter(train.split(shape.batch))).float().to(shape.device)}
        trainable = new_trainable((HOOK,), first, config, {HOOK: moments(train)})
        self.optimiser = CoderOptimiser(trainable, OptimiserConfig(schedule, settings.train.clip))

    def step(self, x: Tensor, index: int) -> None:
        for number, rows in enumerate(x.chunk(self.steps_in_batch)):
            self.optimiser.step({HOOK: rows}, index=index * self.steps_in_batch + number)

    def finished(self) -> Weights:
        sae = self.optimiser.finished()[HOOK]
        return Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)


def moments(train: Rows) -> ActivationMoments:
    """Of the first million rows, as the cache of a run knows those of all."""
    n, squares, total = 0, 0.0, torch.zeros(())
    for piece in islice(train.split(4096), 256):
        n, squares, total = (
            n + len(piece),
            squares + float(piece.double().square().sum()),
            total + piece.double().sum(0),
        )
    return ActivationMoments(squares / n, squares / n - float((total / n).square().sum()))


class SaeLens:
    """sae-lens's `SAETrainer` with `TopKTrainingSAE`: Adam at 3e-4, decoder rows that start at length 0.1.

    is_sparse: its sparse codes, without the rescaling by decoder norms, whose gradient torch 2.13 does not have for
    them on the CPU. is_normalised: inputs scaled to a mean norm of sqrt(d_in), as its guide does.
    """

    def __init__(self, shape: Shape, train: Rows, *, is_sparse: bool = False, is_normalised: bool = False) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.shape = shape
        torch.manual_seed(shape.seed)
        normalisation = "expected_average_only_in" if is_normalised else "none"
        config = TopKTrainingSAEConfig(
            d_in=shape.d_in,
            d_sae=shape.d_sae,
            k=shape.k,
            use_sparse_activations=is_sparse,
            rescale_acts_by_decoder_norm=not is_sparse,
            normalize_activations=normalisation,
            device=shape.device,
        )
        theirs = SAETrainerConfig(
            total_training_samples=shape.n_steps * shape.batch,
            train_batch_size_samples=shape.batch,
            device=shape.device,
        )
        theirs.lr_end = theirs.lr / 10  # as its runner's settings say
        batches = (piece.float().to(shape.device) for piece in train.split(shape.batch))
        self.trainer = SAETrainer(cfg=theirs, sae=TopKTrainingSAE(config), data_provider=batches)
        if is_normalised:
            scaler = self.trainer.activation_scaler
            scaler.estimate_scaling_factor(
                d_in=shape.d_in, data_provider=batches, n_batches_for_norm_estimate=shape.n_steps
            )

    def step(self, x: Tensor, index: int) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def finished(self) -> Weights:
        sae, scaler = self.trainer.sae, self.trainer.activation_scaler
        if scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        if sae.cfg.rescale_acts_by_decoder_norm:
            sae.fold_W_dec_norm()
        return Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)


class DictionaryLearning:
    """dictionary-learning's `TopKTrainer`. Its warm-up of 1,000 steps is cut to a twentieth of a shorter run."""

    def __init__(self, shape: Shape, train: Rows) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.shape = shape
        self.trainer = TopKTrainer(
            steps=shape.n_steps,
            activation_dim=shape.d_in,
            dict_size=shape.d_sae,
            k=shape.k,
            layer=0,
            lm_name="none",
            warmup_steps=min(1000, shape.n_steps // 20),
            seed=shape.seed,
            device=shape.device,
        )

    def step(self, x: Tensor, index: int) -> None:
        self.trainer.update(index, x)

    def finished(self) -> Weights:
        ae = self.trainer.ae
        return Weights(ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec)


class _Feed(nn.Module):
    """A language model for sparsify's trainer, whose only layer gives out the batches that it is handed."""

    def __init__(self, d_in: int, device: str) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.device = torch.device(device)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.batches: Queue[Tensor] = Queue()
        self.idle: Queue[None] = Queue()
        self.batches.put(torch.zeros(1, d_in, device=device))

    @property
    def base_model(self) -> "_Feed":
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        self.idle.put(None)
        return self.layer(self.batches.get()[None])


class Sparsify:
    """sparsify's `Trainer`, whose `fit` runs in a thread of its own and waits there for each batch."""

    def __init__(self, shape: Shape, train: Rows) -> None:
        from sparsify import SaeConfig, TrainConfig, Trainer

        self.shape, self.model = shape, _Feed(shape.d_in, shape.device)
        self.folder = tempfile.TemporaryDirectory()
        config = TrainConfig(
            SaeConfig(num_latents=shape.d_sae, k=shape.k),
            batch_size=1,
            hookpoints=["layer"],
            init_seeds=[shape.seed],
            log_to_wandb=False,
            save_dir=self.folder.name,
            save_every=2 * shape.n_steps,
            run_name="run",
        )
        sequences = [{"input_ids": torch.zeros(shape.batch, dtype=torch.int64)}] * shape.n_steps
        with contextlib.redirect_stdout(io.StringIO()):
            trainer: Any = Trainer(config, sequences, self.model)
        self.model.idle.get()
        self.threads = torch.get_num_threads()
        self.worker = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.worker.start()
        self.model.idle.get()

    def _fit(self, trainer: Any) -> None:
        # Each thread has its own number of threads for products.
        torch.set_num_threads(self.threads)
        trainer.fit()
        self.model.idle.put(None)

    def step(self, x: Tensor, index: int) -> None:
        self.model.batches.put(x)
        self.model.idle.get()

    def finished(self) -> Weights:
        from sparsify import SparseCoder

        self.worker.join()
        sae = SparseCoder.load_from_disk(Path(self.folder.name) / "run" / "layer")
        return Weights(sae.encoder.weight.T, sae.encoder.bias, sae.W_dec, sae.b_dec)
