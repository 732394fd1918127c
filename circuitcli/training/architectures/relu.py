"""ReLU with an L1 penalty weighted by decoder norms (Anthropic's April 2024 update to Bricken et al. 2023).

Decoder rows are free, as the penalty counts their length; in the end it moves into the encoder.
"""

from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.sparse import Codes, decode
from circuitcli.saes.relu import ReluSae
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.thresholded import TrainableThresholded, active_features
from circuitcli.training.architectures.trainable import BuildInputs, ForwardResult
from circuitcli.training.initial import with_unit_decoder

# The weight in models as wide as those that it was found for.
WIDE_WEIGHT, WIDE = 5.0, 4096
# The penalty rises to its full weight in this share of the run, or features die before they mean anything: with relu in
# the run that `default_l1_weight` tells of, 21 % in the end if it rises in a twentieth, 0.5 % if it rises in half.
PENALTY_WARMUP = 0.5


def default_l1_weight(width: int) -> float:
    """5 (Anthropic's April 2024 update), times sqrt(width / 4096) in narrower models.

    Inputs have a mean squared norm of their width: k equal codes that make one up are sqrt(width / k) long each, and a
    code is worth its penalty only if it is longer than the weight. Measured at the residual stream of a 135M model, 576
    wide, 4,608 features, a million tokens: with 5 half of the features are dead, and a token has 13 codes.
    """
    return WIDE_WEIGHT * min(1.0, (width / WIDE) ** 0.5)


class TrainableRelu(TrainableThresholded):
    """Loss: squared error plus ``sae.l1_weight`` times the sum of codes times decoder norms, over the variance."""

    has_unit_decoder = False

    def forward_dense(
        self, pre: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_out"], *, share: float
    ) -> ForwardResult:
        """See `TrainableThresholded`."""
        codes = self.sae.sparsify(pre)
        l1 = (codes @ self.sae.W_dec.norm(dim=1)).mean()
        return ForwardResult(self.sae.decode(codes), active_features(codes), losses={"l1": self.penalty(l1, share)})

    def forward_sparse(self, above: Codes, y: Float[Tensor, "batch d_out"], *, share: float) -> ForwardResult:
        """See `TrainableThresholded`."""
        sae = self.sae
        l1 = above.total(sae.W_dec.norm(dim=1)) / len(y)
        return ForwardResult(
            decode(above, sae.W_dec, sae.b_dec), above.features, losses={"l1": self.penalty(l1, share)}
        )

    def penalty(self, l1: Float[Tensor, ""], share: float) -> Float[Tensor, ""]:
        """The weighted penalty at this share of the run."""
        weight = self.config.sae.l1_weight
        if weight is None:
            weight = default_l1_weight(self.sae.d_in)
        # What learned before has met the penalty.
        risen = 1.0 if self.is_begun else min(1.0, share / PENALTY_WARMUP)
        return weight * risen * l1 / self.variance

    def inference(self) -> SparseCoder:
        """See `TrainableCoder`."""
        return with_unit_decoder(self.sae)


def build(inputs: BuildInputs) -> TrainableRelu:
    """Untrained, from settings and first activations."""
    return build_single(TrainableRelu, ReluSae, inputs)
