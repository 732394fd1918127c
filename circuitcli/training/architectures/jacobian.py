"""Pairs of TopK SAEs whose codes are to depend on each other sparsely, through the MLP between them (JSAE).

Farnik et al. 2025, arXiv:2502.18147: beside both reconstructions the loss holds the size of the Jacobian of the second
SAE's codes by the first one's. Its unit is that of scaled activations, so that a weight means the same in every model.
"""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.sparse import Codes
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.several import TrainableCoders
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import Batch, BuildInputs, ForwardResult, StepResult
from circuitcli.training.jacobian import Active, jacobian_size
from circuitcli.training.takeover import refuse_normalising


class JacobianEnd(TrainableTopK):
    """A TopK SAE at one end of a pair; it tells which features were active."""

    active: Active

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> ForwardResult:
        """See `TrainableTopK`."""
        shape = (len(y), self.config.sae.k)
        self.active = Active(codes.features.view(shape), (codes.values.detach() > 0).view(shape))
        return super().decoded(codes, y)


class TrainableJacobianPair(TrainableCoders):
    """Two SAEs and what lies between them, which does not learn."""

    def __init__(self, first: JacobianEnd, second: JacobianEnd, mlp: Mlp) -> None:
        super().__init__()
        self.first, self.second, self.mlp = first, second, mlp

    @property
    def coders(self) -> tuple[JacobianEnd, JacobianEnd]:
        """See `TrainableCoders`: both ends."""
        return self.first, self.second

    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`."""
        for coder in self.coders:
            refuse_normalising(coders[coder.sae.hook], "the size of a Jacobian")
        super().begin_from(coders, rows)

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`. The Jacobian is a part of the second SAE's loss."""
        results = super().training_forward(batch, share=share)
        weight, second = self.first.config.sae.jacobian_weight, self.second.sae.hook
        if weight:
            size = self._jacobian(batch)
            result = results[second]
            losses = {**result.losses, "jacobian": weight * size}
            results[second] = result._replace(losses=losses, measures={"jacobian": size.detach()})
        return results

    def _jacobian(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean size of the Jacobian of scaled codes."""
        weights = self.first.sae.W_dec
        x = batch[self.first.sae.hook].to(weights.device, weights.dtype)
        size = jacobian_size(
            x,
            self.mlp,
            reads=weights,
            writes=self.second.sae.W_enc.T,
            active_in=self.first.active,
            active_out=self.second.active,
        )
        return size * (self.second.scale / self.first.scale)


def build(inputs: BuildInputs) -> TrainableJacobianPair:
    """Both ends untrained, each as if it were alone."""
    assert inputs.mlp is not None
    one, other = (build_single(JacobianEnd, TopKSae, replace(inputs, hooks=(hook,))) for hook in inputs.hooks)
    return TrainableJacobianPair(one, other, inputs.mlp)
