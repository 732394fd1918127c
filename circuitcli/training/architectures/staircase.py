"""Staircase: the SAEs of one site share features from layer to layer (SCALAR: Fillingham et al., arXiv:2511.07572).

There is one encoder and one decoder. The SAE of the first layer uses their first ``d_sae`` features, that of the second
the first ``2 * d_sae``, and so on, each with biases of its own: a feature that persists need not be learned again under
another number. With ``topk-tied`` all of them use all ``d_sae`` features. With ``staircase-detach`` only the features
that a layer adds learn from it; those that it inherits are taken as the layers before made them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.apart import ChunkedTopK
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.architectures.several import TrainableCoders
from circuitcli.training.architectures.trainable import (
    ActivationMoments,
    Batch,
    BuildInputs,
    StepResult,
    TrainingConfig,
)
from circuitcli.training.initial import generator_of, geometric_median, unit_rows
from circuitcli.training.rows import along_rows_removed, lengths_to_keep, rows_made_unit
from circuitcli.training.takeover import put, refuse_normalising


class StaircaseStep(ChunkedTopK):
    """A TopK SAE that is given encoder and decoder for each batch; its biases are its own."""

    has_unit_decoder = False

    def __init__(
        self, sae: TopKSae, config: TrainingConfig, moments: Mapping[HookPoint, ActivationMoments], *, step_width: int
    ) -> None:
        super().__init__(sae, config, moments)
        self.chunk_features = step_width
        # What is no parameter of this module may be replaced by a part of another's.
        del sae.W_enc, sae.W_dec
        self.may_revive: Bool[Tensor, " d_sae"] | None = None

    def use_weights(self, W_enc: Float[Tensor, "d_in d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Take these weights, which may be parts of larger ones, from now on."""
        self.sae.W_enc, self.sae.W_dec = cast(nn.Parameter, W_enc), cast(nn.Parameter, W_dec)

    def is_silent(self) -> Bool[Tensor, " d_sae"]:
        """Which features are dead in this layer."""
        return self.silent_tokens >= self.config.dead_tokens

    def dead(self) -> Int[Tensor, " n_dead"]:
        """Dead features that AuxK may revive here."""
        is_dead = self.is_silent()
        return (is_dead if self.may_revive is None else is_dead & self.may_revive).nonzero()[:, 0]

    @torch.no_grad()
    def inference(self) -> SparseCoder:
        """See `TrainableCoder`: an SAE whose weights are its own."""
        sae = TopKSae(self.sae.config, k=self.config.sae.k).to(self.sae.b_enc.device)
        for name, parameter in sae.named_parameters():
            parameter.copy_(getattr(self.sae, name))
        return sae


class TrainableStaircase(TrainableCoders):
    """The SAEs of one site, the deepest last, each a `StaircaseStep` with the first rows of the shared weights."""

    def __init__(
        self,
        hooks: tuple[HookPoint, ...],
        d_in: int,
        config: TrainingConfig,
        moments: Mapping[HookPoint, ActivationMoments],
    ) -> None:
        super().__init__()
        # Of decoder rows that keep their length, where that is not one.
        self.row_lengths: Float[Tensor, " d_sae"] | None = None
        self.detaches = config.sae.architecture == "staircase-detach"
        shapes = DESCRIPTIONS[config.sae.architecture].layout.coders(hooks)
        self.step_width, self.widths = config.d_sae, [config.d_sae * shape.width for shape in shapes]
        self.steps = nn.ModuleList(
            StaircaseStep(
                TopKSae(SaeConfig(hook, d_in, width), k=config.sae.k), config, moments, step_width=config.d_sae
            )
            for hook, width in zip(hooks, self.widths, strict=True)
        )
        # Stored transposed, as the sparse kernels like it, and so that a prefix of the features is one piece.
        self.W_enc = nn.Parameter(torch.zeros(self.widths[-1], d_in).T)
        self.W_dec = nn.Parameter(torch.zeros(self.widths[-1], d_in))

    @property
    def coders(self) -> list[StaircaseStep]:
        """See `TrainableCoders`: one for each layer. Inherited features that a layer does not use count as dead."""
        return [cast(StaircaseStep, step) for step in self.steps]

    @torch.no_grad()
    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`. Raises InputError for SAEs that share no features."""
        deepest = coders[self.sae_hooks[-1]]
        for step in self.coders:
            coder = coders[step.sae.hook]
            refuse_normalising(coder, "a staircase")
            self._check_shared(coder, deepest)
            put(step.sae.b_enc, coder.b_enc * step.scale)
            put(step.sae.b_dec, coder.b_dec * step.scale)
        put(self.W_enc, deepest.W_enc)
        put(self.W_dec, deepest.W_dec)
        self.row_lengths = lengths_to_keep(self.W_dec)

    def _check_shared(self, coder: SparseCoder, deepest: SparseCoder) -> None:
        """Raise InputError unless a step has the first features of the deepest one."""
        width = coder.d_sae
        shares = torch.equal(coder.W_enc, deepest.W_enc[:, :width]) and torch.equal(coder.W_dec, deepest.W_dec[:width])
        if not shares or not coder.config.subtract_decoder_bias:
            raise InputError(
                f"the SAE at {coder.hook} shares no features with the one at {deepest.hook}, as a staircase does",
                hint="train them on as --set sae.architecture=topk",
            )

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`."""
        self._share_weights()
        results: dict[HookPoint, StepResult] = {}
        for step, may_revive in zip(self.coders, self._revivable(), strict=True):
            step.ranks, step.may_revive = self.ranks, may_revive
            results |= step.training_forward(batch, share=share)
        return results

    def _share_weights(self) -> None:
        """Give each step its part of the weights."""
        for index, (step, width) in enumerate(zip(self.coders, self.widths, strict=True)):
            first = self.step_width * index if self.detaches else 0
            step.use_weights(_Rows.apply(self.W_enc.T, first, width).T, _Rows.apply(self.W_dec, first, width))

    @torch.no_grad()
    def _revivable(self) -> list[Tensor]:
        """For each layer the features that AuxK may revive there.

        A feature that lives in another layer is not to be turned to what this one misses: shared, it must be silent
        everywhere; detached, it must belong to this layer.
        """
        silent = torch.ones(self.widths[-1], dtype=torch.bool, device=self.W_dec.device)
        if self.detaches:
            step_of = torch.arange(self.widths[-1], device=self.W_dec.device) // self.step_width
            return [step_of[:width] == index for index, width in enumerate(self.widths)]
        for step, width in zip(self.coders, self.widths, strict=True):
            silent[:width] &= step.is_silent()
        return [silent[:width] for width in self.widths]

    def project_gradients(self) -> None:
        """See `Trainable`."""
        along_rows_removed(self.W_dec, self.row_lengths)

    def project_parameters(self) -> None:
        """See `Trainable`."""
        rows_made_unit(self.W_dec, self.row_lengths)

    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Trainable`: an ordinary TopK SAE for each layer."""
        self._share_weights()
        return super().finished()


@torch.no_grad()
def build(inputs: BuildInputs) -> TrainableStaircase:
    """An untrained staircase; what each layer adds begins as a TopK SAE of that layer alone would."""
    hooks, first, config = inputs.hooks, inputs.first, inputs.config
    trainable = TrainableStaircase(hooks, first[hooks[0]].shape[1], config, inputs.moments)
    for step in trainable.coders:
        hook = step.sae.hook
        added = slice(step.sae.d_sae - config.d_sae, step.sae.d_sae)
        rows = unit_rows(config.d_sae, step.sae.d_in, generator_of(config.seed, hook))
        trainable.W_dec[added] = rows
        trainable.W_enc[:, added] = rows.T
        step.sae.b_dec.copy_(geometric_median((first[hook].float() * step.scale).cpu().double()))
    return trainable.to(first[hooks[0]].device)


class _Rows(torch.autograd.Function):
    """Rows up to ``stop`` of a matrix; those before ``first`` get no gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, first: int, stop: int) -> Tensor:
        ctx.shape, ctx.first, ctx.stop = matrix.shape, first, stop
        return matrix[:stop]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        whole = gradient.new_zeros(ctx.shape)
        whole[ctx.first : ctx.stop] = gradient[ctx.first :]
        return whole, None, None
