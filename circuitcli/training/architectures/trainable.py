"""An SAE while it learns: what it does with a batch, what its loss is made of, and what it becomes in the end."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.base import Frame, SparseCoder
from circuitcli.saes.fast.sparse import Encoder
from circuitcli.settings.sae import SaeSettings
from circuitcli.training.auxk import auxk
from circuitcli.training.initial import folded, input_scale
from circuitcli.training.loss import missed_variance
from circuitcli.training.ranks import ALONE, Ranks
from circuitcli.training.rows import along_rows_removed, lengths_to_keep, rows_made_unit
from circuitcli.training.takeover import normalised, unfolded, variance_of

Batch = Mapping[HookPoint, Float[Tensor, "batch _"]]


@dataclass(frozen=True)
class TrainingConfig:
    """What is the same for all coders of a variant: their shape, and how dead features are treated."""

    sae: SaeSettings
    d_sae: int
    auxk_weight: float
    dead_tokens: int
    seed: int = 0
    autocast: bool = False


@dataclass(frozen=True)
class ActivationMoments:
    """What is known of a hook point's activations beforehand: mean squared norm, and variance around the mean."""

    mean_square_norm: float
    variance: float


@dataclass(frozen=True)
class BuildInputs:
    """What untrained coders are made from.

    first: raw activations of a batch, on whose device they are to be. moments: of all that is read and predicted.
    mlp: what lies between two hook points, for architectures that need it.
    """

    hooks: tuple[HookPoint, ...]
    first: Batch
    config: TrainingConfig
    moments: Mapping[HookPoint, ActivationMoments]
    mlp: Mlp | None = None


class StepResult(NamedTuple):
    """What one SAE did with a batch: weighted parts of its loss, the missed share of the variance, active features.

    measures: what the architecture measures beside these, for metrics.jsonl.
    """

    losses: dict[str, Float[Tensor, ""]]
    fvu: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    measures: Mapping[str, Float[Tensor, ""]] = MappingProxyType({})


@dataclass(frozen=True)
class ForwardResult:
    """A reconstruction, what it costs beside what it misses, and which features took part (some more than once)."""

    reconstruction: Float[Tensor, "batch d_out"]
    active: Int[Tensor, " entries"]
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    measures: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Objective(ABC):
    """What an SAE is to keep if it is something else than the activations alone."""

    @abstractmethod
    def losses(
        self,
        batch: Batch,
        hook: HookPoint,
        reconstruction: Float[Tensor, "row d_model"],
        *,
        fvu: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """What it costs that these raw rows, of this missed variance, take the place of the batch's own, by name."""


class Trainable(nn.Module, ABC):
    """One module with one optimiser: an SAE, or several that share weights or a loss."""

    # The processes that share each batch.
    ranks: Ranks = ALONE
    # Whether something is set after training, from some more activations.
    needs_calibration: ClassVar[bool] = False

    @property
    @abstractmethod
    def hooks(self) -> tuple[HookPoint, ...]:
        """What it reads of a batch."""

    @property
    @abstractmethod
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """Where its SAEs read."""

    @abstractmethod
    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """Take over finished coders for raw activations, by what they read; without a step `finished` gives them back.

        rows: some raw activations, always the same ones. Raises InputError for what cannot be trained here.
        """

    @abstractmethod
    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """Losses and measures of each SAE on raw activations, ``share`` (0 to 1) of the run being behind it."""

    @abstractmethod
    def finished(self) -> dict[HookPoint, SparseCoder]:
        """The SAEs for raw activations, on the CPU."""

    @abstractmethod
    def dead_share(self, hook: HookPoint) -> float:
        """Dead features over all features of an SAE."""

    def chunk_of(self, hook: HookPoint) -> int | None:
        """Features of each chunk of an SAE whose features come in several; None where they do not."""
        return None

    def rate_factor(self, name: str) -> float:
        """By how much the learning rate of the parameter of this name is larger than that of the others."""
        return 1.0

    def project_gradients(self) -> None:
        """Change the gradients, where the architecture says so, before they are clipped and followed."""

    def project_parameters(self) -> None:
        """Put the parameters back to where the architecture wants them, after a step."""

    def calibrate(self, batch: Batch, *, n_tokens: int) -> None:
        """Set what is set after training: takes in raw activations, of ``n_tokens`` tokens in several batches."""


class TrainableCoder(Trainable):
    """One SAE that learns from activations times ``scale``, after which their mean squared norm is their width.

    A transcoder's target is scaled likewise. Subclasses give the `forward_pass`.
    """

    # Whether decoder rows stay on the unit sphere.
    has_unit_decoder: ClassVar[bool] = True
    objective: Objective | None = None
    # Features of a chunk where they come in chunks, as in the steps of a staircase.
    chunk_features: int | None = None
    # Whether it learned before this run.
    is_begun: bool = False
    # Of decoder rows that keep their length, where that is not one.
    row_lengths: Float[Tensor, " d_sae"] | None = None

    def __init__(
        self, sae: SparseCoder, config: TrainingConfig, moments: Mapping[HookPoint, ActivationMoments]
    ) -> None:
        """moments: of the hook points that the SAE reads and predicts."""
        super().__init__()
        self.sae, self.config = sae, config
        self.scale = input_scale(moments[sae.hook].mean_square_norm, d_in=sae.d_in)
        self.target_scale = input_scale(moments[sae.target].mean_square_norm, d_in=sae.d_out)
        self.variance = moments[sae.target].variance * self.target_scale**2 or 1.0
        self.register_buffer("silent_tokens", torch.zeros(sae.d_sae, dtype=torch.int64))
        self.silent_tokens: Tensor

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return (self.sae.hook, self.sae.target) if self.sae.is_transcoder else (self.sae.hook,)

    @property
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return (self.sae.hook,)

    def start(self, first: Batch) -> None:
        """Set what starts from raw activations besides weights and biases."""

    @torch.no_grad()
    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`. What normalises its input learns from normalised rows, to which a factor is nothing."""
        coder, device = coders[self.sae.hook], self.sae.b_enc.device
        if coder.config.normalisation in ("layer-norm", "rms-norm"):
            self.scale = 1.0
            self.target_scale = self.target_scale if coder.is_transcoder else 1.0
        if coder.config.normalisation != "none" and not coder.is_transcoder:
            self.variance = variance_of(normalised(coder, rows[coder.hook].float() * self.scale))
        self.sae = self.taken(unfolded(coder, scale=self.scale, target_scale=self.target_scale)).to(device)
        self.row_lengths = lengths_to_keep(self.sae.W_dec) if self.has_unit_decoder else None
        self.is_begun = True

    def taken(self, coder: SparseCoder) -> SparseCoder:
        """A finished coder for scaled activations as it is while it learns; it is not needed as it was any more."""
        return coder

    @property
    def encoder(self) -> Encoder:
        """The encoder in the form of sparse products."""
        sae = self.sae
        return Encoder(sae.W_enc, sae.b_enc, sae.b_dec if sae.config.subtract_decoder_bias else None)

    @abstractmethod
    def forward_pass(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        *,
        share: float,
    ) -> ForwardResult:
        """Reconstruct y from x, both scaled. A loss named ``reconstruction`` takes the place of the usual one."""

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`."""
        x = self.scaled(batch[self.sae.hook], self.scale)
        y = self.scaled(batch[self.sae.target], self.target_scale) if self.sae.is_transcoder else x
        if (frame := self.sae.normal_frame(x)) is not None:
            x = normalised(self.sae, x)
            y = y if self.sae.is_transcoder else (y - frame.mean) / frame.scale
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.config.autocast):
            result = self.forward_pass(x, y, share=share)
        fvu = missed_variance(y, result.reconstruction, variance=self.variance)
        losses = {**self._objective_losses(batch, self._unframed(result.reconstruction, frame), fvu), **result.losses}
        if self.config.auxk_weight and len(dead := self.dead()):
            error, k = y - result.reconstruction.detach(), max(1, self.sae.d_out // 2)
            missed = auxk(x, error, self.encoder, self.sae.W_dec, dead, k=k, ranks=self.ranks)
            losses["auxk"] = self.config.auxk_weight * missed
        count_silent_tokens(self.silent_tokens, result.active, n_tokens=len(x), ranks=self.ranks)
        l0 = torch.tensor(len(result.active) / len(x))
        return {self.sae.hook: StepResult(losses, fvu.detach(), l0, result.measures)}

    def _objective_losses(self, batch: Batch, reconstruction: Tensor, fvu: Tensor) -> dict[str, Tensor]:
        """What is to be made small beside the architecture's own costs."""
        if self.objective is None:
            return {"reconstruction": fvu}
        return self.objective.losses(batch, self.sae.target, reconstruction / self.target_scale, fvu=fvu)

    def _unframed(self, y: Float[Tensor, "batch d_out"], frame: Frame | None) -> Float[Tensor, "batch d_out"]:
        """A reconstruction with what normalisation took off."""
        return y if frame is None or self.sae.is_transcoder else y * frame.scale + frame.mean

    def scaled(self, x: Float[Tensor, "batch d"], scale: float) -> Float[Tensor, "batch d"]:
        """Raw activations as the SAE sees them."""
        return x.to(self.sae.W_enc.device, torch.float32) * scale

    def dead(self) -> Int[Tensor, " n_dead"]:
        """Features that were silent for as many tokens as make a feature dead."""
        return (self.silent_tokens >= self.config.dead_tokens).nonzero()[:, 0]

    def dead_share(self, hook: HookPoint) -> float:
        """See `Trainable`."""
        return int((self.silent_tokens >= self.config.dead_tokens).sum()) / len(self.silent_tokens)

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take off the part of the decoder's gradient along its rows, whose length is fixed."""
        if self.has_unit_decoder:
            along_rows_removed(self.sae.W_dec, self.row_lengths)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Give decoder rows their length again."""
        if self.has_unit_decoder:
            rows_made_unit(self.sae.W_dec, self.row_lengths)

    def inference(self) -> SparseCoder:
        """The SAE as it will be used, on scaled activations."""
        return self.sae

    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Trainable`."""
        sae = folded(self.inference(), scale=self.scale, target_scale=self.target_scale)
        return {self.sae.hook: sae.cpu()}


@torch.no_grad()
def count_silent_tokens(
    silent_tokens: Int[Tensor, " d_sae"], active: Int[Tensor, " entries"], *, n_tokens: int, ranks: Ranks
) -> None:
    """Count the tokens since each feature was last active, over the batches of all processes.

    active: the features of a batch of so many tokens, some more than once.
    """
    was_active = torch.zeros_like(silent_tokens)
    was_active[active] = 1
    silent_tokens += n_tokens * ranks.n
    silent_tokens[ranks.sum(was_active) > 0] = 0
