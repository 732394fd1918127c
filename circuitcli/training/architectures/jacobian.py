"""Pairs of TopK SAEs whose codes are to depend on each other sparsely, through the MLP between them (JSAE).

Farnik et al. 2025, arXiv:2502.18147: beside both reconstructions the loss holds the size of the Jacobian of the second
SAE's codes by the first one's. Its unit is that of scaled activations, so that a weight means the same in every model.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.base import SparseAutoencoder
from circuitcli.saes.sparse import Codes
from circuitcli.training.architectures.student import Attempt, Batch, Outcome, Student
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


class JacobianStudent(Student):
    """Two SAEs and what lies between them, which does not learn."""

    def __init__(self, first: EndStudent, second: EndStudent, mlp: Mlp) -> None:
        super().__init__()
        self.first, self.second, self.mlp = first, second, mlp

    @property
    def ends(self) -> tuple[EndStudent, EndStudent]:
        """Both students."""
        return self.first, self.second

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """See `Student`."""
        return tuple(end.sae.hook for end in self.ends)

    @property
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """See `Student`."""
        return self.hooks

    def learn(self, batch: Batch, *, share: float) -> dict[HookPoint, Outcome]:
        """See `Student`. The Jacobian is a part of the second SAE's loss."""
        outcomes: dict[HookPoint, Outcome] = {}
        for end in self.ends:
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
        for end in self.ends:
            end.turn_gradients()

    def settle(self) -> None:
        """See `Student`."""
        for end in self.ends:
            end.settle()

    def finished(self) -> dict[HookPoint, SparseAutoencoder]:
        """See `Student`: two ordinary TopK SAEs."""
        return {**self.first.finished(), **self.second.finished()}

    def dead_share(self, hook: HookPoint) -> float:
        """See `Student`."""
        by_hook: Mapping[HookPoint, EndStudent] = {end.sae.hook: end for end in self.ends}
        return by_hook[hook].dead_share(hook)
