"""Pairs of TopK SAEs whose codes are to depend on each other sparsely, through the MLP between them (JSAE).

Farnik et al. 2025, arXiv:2502.18147: beside both reconstructions the loss holds the size of the Jacobian of the second
SAE's codes by the first one's. Its unit is that of scaled activations, so that a weight means the same in every model.
"""

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.fast.sparse import Codes
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import Batch, ForwardResult, StepResult, TrainableCoders
from circuitcli.training.jacobian import Active, jacobian_size


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

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`. The Jacobian is a part of the second SAE's loss."""
        results: dict[HookPoint, StepResult] = {}
        for end in self.coders:
            end.ranks = self.ranks
            results |= end.training_forward(batch, share=share)
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

    def project_gradients(self) -> None:
        """See `Trainable`."""
        for end in self.coders:
            end.project_gradients()

    def project_parameters(self) -> None:
        """See `Trainable`."""
        for end in self.coders:
            end.project_parameters()
