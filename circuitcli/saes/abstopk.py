"""AbsTopK: the k pre-activations furthest from zero stay, with their sign."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.topk import TopKSae


class AbsTopKSae(TopKSae):
    """Codes may be negative: one feature stands for two opposite directions."""

    # What TopK finds fast are positive codes alone.
    active = SparseCoder.active
    architecture = "abstopk"

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The k of largest magnitude per token."""
        indices = pre.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))
