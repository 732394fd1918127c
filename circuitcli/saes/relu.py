"""ReLU: positive pre-activations stay (Bricken et al. 2023; Cunningham et al. 2023, arXiv:2309.08600)."""

from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder


class ReluSae(SparseCoder):
    """Sparse because it was trained with a penalty on its codes."""

    architecture = "relu"

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive parts."""
        return pre.relu()
