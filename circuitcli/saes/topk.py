"""TopK: the k largest pre-activations stay, if positive (Gao et al. 2024, arXiv:2406.04093)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import Normalisation, SaeConfig, SparseAutoencoder


class TopKSae(SparseAutoencoder):
    """Exactly the k largest pre-activations of a token are kept, and of those the positive ones."""

    architecture = "topk"

    def __init__(
        self, d_in: int, d_sae: int, k: int, hook: HookPoint, *, normalisation: Normalisation = "none"
    ) -> None:
        if k > d_sae:
            raise SettingsError(f"sae.k={k} is more than the {d_sae} features", hint="lower sae.k or raise sae.d_sae")
        super().__init__(SaeConfig(self.architecture, hook, d_in, d_sae, normalisation))
        self.k = k

    @property
    def options(self) -> dict[str, Any]:
        """How many features stay active."""
        return {"k": self.k}

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The k largest per token, those above zero; the gradient passes to these alone."""
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())
