"""What architectures have in common that choose no number of codes: any pre-activation above a floor may be one.

Before they have learned that is half of all, which are best worked on as matrices. Later it is one of a hundred, for
which sums over the few cost a fraction. Both ways give the same numbers, up to the order of summation; under autocast
the sums are float32 where the matrices' products are bfloat16.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.screening import flat_places
from circuitcli.saes.fast.selection import Above, Crowded
from circuitcli.saes.fast.sparse import Codes, pre_activations
from circuitcli.training.architectures.trainable import ActivationMoments, ForwardResult, TrainableCoder, TrainingConfig

# Measured where both ways take equally long: 576 dimensions, 4,608 features.
SPARSE_SHARE = 1 / 24


class TrainableThresholded(TrainableCoder):
    """Works on entries where few pre-activations are above the floor, on matrices where many are."""

    def __init__(
        self, sae: SparseCoder, config: TrainingConfig, moments: Mapping[HookPoint, ActivationMoments]
    ) -> None:
        super().__init__(sae, config, moments)
        # Kept in checkpoints: a resumed training goes on in the same way, to the last bit.
        self.register_buffer("share_above", torch.ones(()))
        self.share_above: Tensor

    def floor(self) -> Tensor:
        """What a pre-activation must be above to have any part in the loss, (d_sae,) or one number."""
        return self.sae.b_enc.new_zeros(())

    @abstractmethod
    def forward_dense(
        self, pre: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_out"], *, share: float
    ) -> ForwardResult:
        """The definition, from all pre-activations."""

    @abstractmethod
    def forward_sparse(self, above: Codes, y: Float[Tensor, "batch d_out"], *, share: float) -> ForwardResult:
        """The same from those that are above the floor."""

    def forward_pass(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        *,
        share: float,
    ) -> ForwardResult:
        """See `TrainableCoder`."""
        rule = Above(self.floor().detach(), SPARSE_SHARE)
        # On GPUs the sums over the tokens of a feature's bias or threshold would come in another order each time.
        is_cpu = x.device.type == "cpu"
        if is_cpu and float(self.share_above) <= SPARSE_SHARE:
            try:
                above = pre_activations(x, self.encoder, rule)
            except Crowded:
                pass
            else:
                self._note(len(above.values) / (len(x) * self.sae.d_sae))
                return self.forward_sparse(above, y, share=share)
        pre = self.sae.pre_activations(x)
        if is_cpu:
            self._note(int(rule.mask(pre.detach()).count_nonzero()) / pre.numel())
        return self.forward_dense(pre, y, share=share)

    def _note(self, share: float) -> None:
        """Keep what share of pre-activations was above the floor, in the batch of all processes."""
        shares = torch.full_like(self.share_above, share)
        self.share_above.copy_(self.ranks.sum(shares) / self.ranks.n)


def active_features(codes: Float[Tensor, "batch d_sae"]) -> Int[Tensor, " active"]:
    """The feature of each code that is above zero."""
    return flat_places(codes.detach() > 0) % codes.shape[1]
