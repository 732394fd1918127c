"""ReLU with an L1 penalty weighted by decoder norms (Anthropic's April 2024 update to Bricken et al. 2023).

Decoder rows are free, as the penalty counts their length; in the end it moves into the encoder.
"""

from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseAutoencoder
from circuitcli.saes.sparse import Codes, decode
from circuitcli.training.architectures.student import Attempt
from circuitcli.training.architectures.thresholded import ThresholdedStudent, active_features
from circuitcli.training.initial import with_unit_decoder

# The penalty rises to its full weight in this share of the run, or features die before they mean anything.
PENALTY_WARMUP = 0.05


class ReluStudent(ThresholdedStudent):
    """Loss: squared error plus ``sae.l1_weight`` times the sum of codes times decoder norms, over the variance."""

    has_unit_decoder = False

    def attempt_dense(
        self, pre: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_out"], *, share: float
    ) -> Attempt:
        """See `ThresholdedStudent`."""
        codes = self.sae.sparsify(pre)
        l1 = (codes @ self.sae.W_dec.norm(dim=1)).mean()
        return Attempt(self.sae.decode(codes), active_features(codes), losses={"l1": self.penalty(l1, share)})

    def attempt_sparse(self, above: Codes, y: Float[Tensor, "batch d_out"], *, share: float) -> Attempt:
        """See `ThresholdedStudent`."""
        sae = self.sae
        l1 = above.total(sae.W_dec.norm(dim=1)) / len(y)
        return Attempt(decode(above, sae.W_dec, sae.b_dec), above.features, losses={"l1": self.penalty(l1, share)})

    def penalty(self, l1: Float[Tensor, ""], share: float) -> Float[Tensor, ""]:
        """The weighted penalty at this share of the run."""
        weight = self.lesson.sae.l1_weight * min(1.0, share / PENALTY_WARMUP)
        return weight * l1 / self.variance

    def inference(self) -> SparseAutoencoder:
        """See `SingleStudent`."""
        return with_unit_decoder(self.sae)
