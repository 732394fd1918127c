"""Temporal: what earlier tokens predict of an activation is taken off, and features describe what is new.

Source: Lubana et al. 2025, arXiv:2511.01836, as SAELens has it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.errors import SettingsError
from circuitcli.saes.base import Frame, SaeConfig, SparseCoder
from circuitcli.saes.topk import largest

# Keeps a prediction of length zero from being divided by.
LEAST_LENGTH = 1e-6


class ContextAttention(nn.Module):
    """Causal attention from each token's codes to those of the tokens before it; heads split the codes."""

    def __init__(self, d_sae: int, *, d_key: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = nn.Linear(d_sae, d_key), nn.Linear(d_sae, d_key)
        self.value, self.out = nn.Linear(d_sae, d_sae), nn.Linear(d_sae, d_sae)

    def forward(self, codes: Float[Tensor, "*text position d_sae"]) -> Float[Tensor, "*text position d_sae"]:
        """What each position gets from those before it; the first one from codes of zero."""
        before = F.pad(codes, (0, 0, 1, -1))
        query, key, value = (
            layer(given).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)
            for layer, given in ((self.query, codes), (self.key, before), (self.value, before))
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(attended.transpose(-3, -2).flatten(-2))


class TemporalSae(SparseCoder):
    """Codes are the k largest positive pre-activations (all of them without k) of what the context does not predict.

    The prediction of each attention layer is ``decode(relu(attention(codes)))``, stretched to what explains most of the
    activation, and what is left goes to the next layer. As part of the frame it is a constant in every derivative and
    is never ablated. Activations are those of one text along the last axis but one, the first position first.
    """

    architecture = "temporal"
    option_names = ("k", "n_heads", "n_attention_layers", "bottleneck_factor")
    reads_context = True

    def __init__(
        self,
        config: SaeConfig,
        k: int | None = None,
        n_heads: int = 8,
        n_attention_layers: int = 1,
        bottleneck_factor: int = 64,
    ) -> None:
        """Raises SettingsError for a width that the heads cannot share, and for a transcoder."""
        if config.target is not None:
            raise SettingsError("a temporal SAE subtracts its prediction from what it reads: it cannot be a transcoder")
        if config.d_sae % (bottleneck_factor * n_heads):
            raise SettingsError(
                f"{config.d_sae} features are not a multiple of {n_heads} heads times bottleneck {bottleneck_factor}"
            )
        super().__init__(config)
        self.k, self.n_heads, self.n_attention_layers = k, n_heads, n_attention_layers
        self.bottleneck_factor = bottleneck_factor
        self.attention = nn.ModuleList(
            ContextAttention(config.d_sae, d_key=config.d_sae // bottleneck_factor, n_heads=n_heads)
            for _ in range(n_attention_layers)
        )

    def frame(self, x: Float[Tensor, "*text position d_in"]) -> Frame:
        """What is taken off: the normalisation's mean, and in its scale what the context predicts."""
        return self._frame(x, self.predicted(super().centred(x)))

    def encode_framed(
        self, x: Float[Tensor, "*text position d_in"]
    ) -> tuple[Float[Tensor, "*text position d_sae"], Frame]:
        """See `SparseCoder`. Predicts once for codes and frame."""
        seen = super().centred(x)
        predicted = self.predicted(seen)
        return self.sparsify((seen - predicted) @ self.W_enc + self.b_enc), self._frame(x, predicted)

    def _frame(self, x: Tensor, predicted: Tensor) -> Frame:
        normal = self.normal_frame(x)
        if normal is None:
            return Frame(predicted, torch.ones_like(predicted[..., :1]))
        return Frame(normal.mean + predicted * normal.scale, normal.scale)

    def centred(self, x: Float[Tensor, "*text position d_in"]) -> Float[Tensor, "*text position d_in"]:
        """See `SparseCoder`: without what the context predicts, too."""
        seen = super().centred(x)
        return seen - self.predicted(seen)

    @torch.no_grad()
    def predicted(self, seen: Float[Tensor, "*text position d_in"]) -> Float[Tensor, "*text position d_in"]:
        """What the tokens before each one tell of its activation, in the scale that the encoder sees."""
        left = seen
        for attention in self.attention:
            direction = attention((left @ self.W_enc).relu()).relu() @ self.W_dec
            length = direction.norm(dim=-1, keepdim=True) + LEAST_LENGTH
            left = left - torch.linalg.vecdot(direction, left)[..., None] / length**2 * direction
        return seen - left

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Codes from pre-activations."""
        return pre.relu() if self.k is None else largest(pre, min(self.k, self.d_sae))
