"""Pairs of TopK SAEs whose codes are to depend on each other sparsely, through the MLP between them (JSAE).

Farnik et al. 2025, arXiv:2502.18147: beside both reconstructions the loss holds the size of the Jacobian of the second
SAE's codes by the first one's. Its unit is that of scaled activations, so that a weight means the same in every model.
"""

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.fast.sparse import Codes
from circuitcli.training.architectures.student import Attempt, Batch, JointStudent, Outcome
from circuitcli.training.architectures.topk import TopKStudent
from circuitcli.training.jacobian import Active, jacobian_size


class EndStudent(TopKStudent):
    """A TopK SAE at one end of a pair; it tells which features were active."""

    active: Active

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> Attempt:
        """See `TopKStudent`."""
        shape = (len(y), self.lesson.sae.k)
        self.active = Active(codes.features.view(shape), (codes.values.detach() > 0).view(shape))
        return super().decoded(codes, y)


class JacobianStudent(JointStudent):
    """Two SAEs and what lies between them, which does not learn."""

    def __init__(self, first: EndStudent, second: EndStudent, mlp: Mlp) -> None:
        super().__init__()
        self.first, self.second, self.mlp = first, second, mlp

    @property
    def students(self) -> tuple[EndStudent, EndStudent]:
        """See `JointStudent`: both ends."""
        return self.first, self.second

    def learn(self, batch: Batch, *, share: float) -> dict[HookPoint, Outcome]:
        """See `Student`. The Jacobian is a part of the second SAE's loss."""
        outcomes: dict[HookPoint, Outcome] = {}
        for end in self.students:
            end.ranks = self.ranks
            outcomes |= end.learn(batch, share=share)
        weight, second = self.first.lesson.sae.jacobian_weight, self.second.sae.hook
        if weight:
            size = self._jacobian(batch)
            outcome = outcomes[second]
            losses = {**outcome.losses, "jacobian": weight * size}
            outcomes[second] = outcome._replace(losses=losses, measures={"jacobian": size.detach()})
        return outcomes

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

    def turn_gradients(self) -> None:
        """See `Student`."""
        for end in self.students:
            end.turn_gradients()

    def settle(self) -> None:
        """See `Student`."""
        for end in self.students:
            end.settle()
