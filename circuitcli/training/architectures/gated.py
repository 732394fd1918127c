"""Gated (Rajamanoharan et al. 2024, arXiv:2404.16014): the penalty weighs on the gate, not on the magnitudes."""

from typing import cast

from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.saes.gated import GatedSae
from circuitcli.training.architectures.relu import ReluStudent
from circuitcli.training.architectures.student import Attempt
from circuitcli.training.loss import missed_variance


class GatedStudent(ReluStudent):
    """Beside the penalty, the open gates alone must reconstruct, through a decoder that does not learn from it."""

    def attempt(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        watched: Int[Tensor, " n_watched"],
        *,
        share: float,
    ) -> Attempt:
        """See `SingleStudent`."""
        sae = cast(GatedSae, self.sae)
        pre = sae.pre_activations(x)
        codes, gates = sae.sparsify(pre), pre.relu()
        by_gates = gates @ sae.W_dec.detach() + sae.b_dec.detach()
        losses = {
            "l1": self.penalty((gates @ sae.W_dec.norm(dim=1)).mean(), share),
            "gate": missed_variance(y, by_gates, variance=self.variance),
        }
        return Attempt(sae.decode(codes), codes.detach().nonzero()[:, 1], pre[:, watched], losses)
