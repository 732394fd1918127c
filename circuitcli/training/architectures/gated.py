"""Gated (Rajamanoharan et al. 2024, arXiv:2404.16014): the penalty weighs on the gate, not on the magnitudes.

Decoder rows have length one, as in the paper. If the penalty weighed free rows by their norms, it would shorten them at
no cost: magnitudes grow in turn, and nothing penalises these.
"""

from typing import cast

from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.sparse import Codes, decode
from circuitcli.saes.gated import GatedSae
from circuitcli.training.architectures.relu import TrainableRelu
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.thresholded import active_features
from circuitcli.training.architectures.trainable import BuildInputs, ForwardResult
from circuitcli.training.initial import with_unit_decoder
from circuitcli.training.loss import missed_variance


class TrainableGated(TrainableRelu):
    """Beside the penalty, the open gates alone must reconstruct, through a decoder that does not learn from it."""

    has_unit_decoder = True

    def taken(self, coder: SparseCoder) -> SparseCoder:
        """See `TrainableCoder`."""
        return with_unit_decoder(coder)

    def forward_dense(
        self, pre: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_out"], *, share: float
    ) -> ForwardResult:
        """See `TrainableThresholded`."""
        sae = self.sae
        codes, gates = sae.sparsify(pre), pre.relu()
        by_gates = gates @ sae.W_dec.detach() + sae.b_dec.detach()
        l1 = gates.sum() / len(y)
        return self._result(sae.decode(codes), active_features(codes), by_gates, l1, y, share=share)

    def forward_sparse(self, above: Codes, y: Float[Tensor, "batch d_out"], *, share: float) -> ForwardResult:
        """See `TrainableThresholded`."""
        sae = cast(GatedSae, self.sae)
        bias, slope, offset = (part.index_select(0, above.features) for part in (sae.b_enc, sae.r_mag, sae.b_mag))
        codes = above._replace(values=((above.values - bias) * slope.exp() + offset).relu())
        by_gates = decode(above, sae.W_dec.detach(), sae.b_dec.detach())
        l1 = above.values.sum() / len(y)
        return self._result(decode(codes, sae.W_dec, sae.b_dec), codes.active(), by_gates, l1, y, share=share)

    def _result(
        self,
        reconstruction: Float[Tensor, "batch d_out"],
        active: Int[Tensor, " entries"],
        by_gates: Float[Tensor, "batch d_out"],
        l1: Float[Tensor, ""],
        y: Float[Tensor, "batch d_out"],
        *,
        share: float,
    ) -> ForwardResult:
        gate = missed_variance(y, by_gates, variance=self.variance)
        return ForwardResult(reconstruction, active, losses={"l1": self.penalty(l1, share), "gate": gate})


def build(inputs: BuildInputs) -> TrainableGated:
    """Untrained, from settings and first activations."""
    return build_single(TrainableGated, GatedSae, inputs)
