"""Gated: one sum opens a feature, another says how active it is (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcli.saes.base import SaeConfig, SparseCoder


class GatedSae(SparseCoder):
    """Pre-activations are those of the gate; ``b_enc`` is the gate's bias.

    With z the encoder's product, the gate is ``z + b_enc`` and the magnitude ``z * exp(r_mag) + b_mag``; r_mag and
    b_mag (d_sae,).
    """

    architecture = "gated"

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive parts of the magnitudes where the gate is open."""
        return (pre > 0) * self.magnitudes(pre).relu()

    def magnitudes(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Magnitudes from the gate's pre-activations."""
        return (pre - self.b_enc) * self.r_mag.exp() + self.b_mag

    def slopes(
        self, codes: Float[Tensor, "*batch n"], features: Int[Tensor, " n"] | slice = slice(None)
    ) -> Float[Tensor, "*batch n"]:
        """See `SparseCoder`: the magnitude's own scale where a feature is active."""
        return super().slopes(codes) * self.r_mag[features].exp()
