"""Signed TopK: the k largest pre-activations stay, whatever their sign, as circuit-tracer computes TopK."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.topk import TopKSae


class SignedTopKSae(TopKSae):
    """As TopK where k features or more are positive; where fewer are, the largest of the others have negative codes."""

    # What TopK finds fast are positive codes alone.
    active = SparseCoder.active
    architecture = "signed_topk"

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The k largest per token."""
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)
