"""TopK: the k largest pre-activations stay, if positive (Gao et al. 2024, arXiv:2406.04093)."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import SettingsError
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.fast.selection import Chosen, TopK


class TopKSae(SparseCoder):
    """Exactly the k largest pre-activations of a token are kept, and of those the positive ones."""

    architecture = "topk"
    option_names = ("k",)

    def __init__(self, config: SaeConfig, *, k: int) -> None:
        """Raises SettingsError if k is more than the width."""
        if k > config.d_sae:
            raise SettingsError(
                f"sae.k={k} is more than the {config.d_sae} features", hint="lower sae.k or raise sae.d_sae"
            )
        super().__init__(config)
        self.k = k

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Codes from pre-activations."""
        return largest(pre, self.k)

    def active(self, x: Float[Tensor, "row d_in"]) -> Chosen:
        """See `SparseCoder`; found by the fastest way that the processor has."""
        found = TopK(self.k).choose(self.centred(x), self.W_enc, self.b_enc)
        kept = (found.values <= 0).logical_not_()
        return Chosen(*(column[kept] for column in found))


def largest(pre: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """The k largest per token, those above zero; the gradient passes to these alone."""
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())
