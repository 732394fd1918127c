"""JumpReLU with straight-through gradients (Rajamanoharan et al. 2024, arXiv:2407.14435), driven to a given L0.

The threshold is raw and in float32: Adam hardly moves a logarithm of a small one, and bfloat16 loses its steps. It has
a larger learning rate than the weights, and starts where the first batch has the L0 that is asked for. The penalty is
(L0 / k - 1)^2: a plain weight on L0 saturates under Adam.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.sparse import Codes, decode
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.thresholded import TrainableThresholded, active_features
from circuitcli.training.architectures.trainable import Batch, BuildInputs, ForwardResult
from circuitcli.training.initial import with_unit_decoder

THRESHOLD = "sae.threshold"
THRESHOLD_RATE = 10.0


class TrainableJumpRelu(TrainableThresholded):
    """Loss: what is missed, plus ``sae.l0_weight`` times the squared relative distance from the L0 asked for."""

    def floor(self) -> Tensor:
        """See `TrainableThresholded`: below the threshold by half the bandwidth."""
        return cast(JumpReluSae, self.sae).threshold - self.config.sae.bandwidth / 2

    def forward_dense(
        self, pre: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_out"], *, share: float
    ) -> ForwardResult:
        """See `TrainableThresholded`."""
        threshold, bandwidth = cast(JumpReluSae, self.sae).threshold, self.config.sae.bandwidth
        codes = Jump.apply(pre, threshold, bandwidth)
        l0 = Step.apply(pre, threshold, bandwidth).sum() / len(y)
        return ForwardResult(self.sae.decode(codes), active_features(codes), losses={"l0": self.penalty(l0)})

    def forward_sparse(self, above: Codes, y: Float[Tensor, "batch d_out"], *, share: float) -> ForwardResult:
        """See `TrainableThresholded`."""
        sae, bandwidth = cast(JumpReluSae, self.sae), self.config.sae.bandwidth
        threshold = sae.threshold.index_select(0, above.features)
        codes = above._replace(values=Jump.apply(above.values, threshold, bandwidth))
        l0 = Step.apply(above.values, threshold, bandwidth).sum() / len(y)
        return ForwardResult(decode(codes, sae.W_dec, sae.b_dec), codes.active(), losses={"l0": self.penalty(l0)})

    def penalty(self, l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The weighted penalty for the L0 of this process's part of the batch."""
        settings = self.config.sae
        # The value is that of the batch of all processes, the gradient this one's part of it.
        l0 = l0 + (self.ranks.sum(l0) / self.ranks.n - l0.detach())
        return settings.l0_weight * (l0 / settings.k - 1.0).square()

    def rate_factor(self, name: str) -> float:
        """See `Trainable`."""
        return THRESHOLD_RATE if name == THRESHOLD else 1.0

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Keep decoder rows at length one and thresholds above zero."""
        super().project_parameters()
        cast(JumpReluSae, self.sae).threshold.clamp_(min=0.0)

    def taken(self, coder: SparseCoder) -> SparseCoder:
        """See `TrainableCoder`."""
        return with_unit_decoder(coder)

    @torch.no_grad()
    def start(self, first: Batch) -> None:
        """See `TrainableCoder`: all thresholds are set to the one that gives raw activations the L0 asked for."""
        sae = cast(JumpReluSae, self.sae)
        pre = sae.pre_activations(self.scaled(first[sae.hook], self.scale))
        n_active = min(self.config.sae.k * len(pre), pre.numel() - 1)
        # Between two pre-activations, so that rounding decides about none.
        threshold = pre.flatten().topk(n_active + 1).values[-2:].mean()
        sae.threshold.fill_(max(0.0, float(threshold)))


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel: 1 where a pre-activation is less than half the bandwidth from its threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class Jump(torch.autograd.Function):
    """pre where it is above the threshold and zero; the threshold's gradient is -(threshold / bandwidth) * kernel."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold) * pre.relu()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        pre, threshold = ctx.saved_tensors
        by_pre = gradient * (pre > threshold)
        near = (gradient * _near(pre, threshold, ctx.bandwidth)).sum_to_size(threshold.shape)
        return by_pre, -(threshold / ctx.bandwidth) * near, None


class Step(torch.autograd.Function):
    """1 where pre is above the threshold; the threshold's gradient is -(1 / bandwidth) * kernel, pre gets none."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        pre, threshold = ctx.saved_tensors
        near = (gradient * _near(pre, threshold, ctx.bandwidth)).sum_to_size(threshold.shape)
        return None, -near / ctx.bandwidth, None


def build(inputs: BuildInputs) -> TrainableJumpRelu:
    """Untrained, from settings and first activations."""
    return build_single(TrainableJumpRelu, JumpReluSae, inputs)
