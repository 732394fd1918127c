"""Which features have been silent for how long."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Silence:
    """Tokens since each feature was last active."""

    def __init__(self, d_sae: int, *, dead_tokens: int, device: torch.device) -> None:
        """dead_tokens: a feature that was silent for so many tokens is dead."""
        self.tokens = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_tokens = dead_tokens

    def dead(self) -> Int[Tensor, " n_dead"]:
        """Indices of the dead features."""
        return (self.tokens >= self.dead_tokens).nonzero()[:, 0]

    @property
    def share(self) -> float:
        """Dead features over all features."""
        return float((self.tokens >= self.dead_tokens).double().mean())

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> None:
        """Count one batch: codes at indices."""
        self.tokens += values.shape[0]
        self.tokens[indices[values > 0]] = 0
