"""JumpReLU: pre-activations above a feature's own threshold stay (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.fast.selection import Above, Chosen, Crowded

# Share of all codes up to which lists of them are shorter than the matrix.
FEW = 1 / 24


class JumpReluSae(SparseCoder):
    """``threshold`` (d_sae,) is in units of the pre-activations, raw, not a logarithm."""

    architecture = "jumprelu"

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.zeros(config.d_sae))

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive pre-activations above the threshold, unchanged."""
        return (pre > self.threshold) * pre.relu()

    def active(self, x: Float[Tensor, "row d_in"]) -> Chosen:
        """See `SparseCoder`; found by the fastest way that the processor has, where they are few."""
        try:
            above = Above(self.threshold.clamp_min(0), most=FEW)
            return above.choose(self.centred(x), self.W_enc, self.b_enc)
        except Crowded:
            return super().active(x)
