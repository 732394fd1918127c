"""JumpReLU: pre-activations above a feature's own threshold stay (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.saes.base import SaeConfig, SparseCoder


class JumpReluSae(SparseCoder):
    """``threshold`` (d_sae,) is in units of the pre-activations, raw, not a logarithm."""

    architecture = "jumprelu"

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.zeros(config.d_sae))

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive pre-activations above the threshold, unchanged."""
        return (pre > self.threshold) * pre.relu()
