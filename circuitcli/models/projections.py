"""The weights of a model's linear maps and norms, as functions of activations."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.models.offloading import weights_at_hand


class Normed(NamedTuple):
    """An activation that was centred, if the norm centres, and scaled, and what it was multiplied by for that."""

    x: Float[Tensor, "*batch d_model"]
    scale: Float[Tensor, "*batch 1"]


@dataclass(frozen=True)
class Norm:
    """LayerNorm, which centres, or RMSNorm: ``gain * normed(x) + bias``."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    epsilon: float
    centres: bool

    def normed(self, x: Float[Tensor, "*batch d_model"]) -> Normed:
        """Without gain and bias."""
        if self.centres:
            x = x - x.mean(dim=-1, keepdim=True)
        scale = (x.square().mean(dim=-1, keepdim=True) + self.epsilon).rsqrt()
        return Normed(x * scale, scale)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The norm itself."""
        return self.gain * self.normed(x).x + self.bias


@dataclass(frozen=True)
class Projection:
    """``x @ weight.T + bias``."""

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The projection itself."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class WeightReader:
    """Where weights are taken to, and what norms add to theirs."""

    device: torch.device
    dtype: torch.dtype
    norm_offset: float

    @torch.no_grad()
    def projection(self, module: nn.Module) -> Projection:
        """A linear map."""
        with weights_at_hand(module):
            weight = module.get_parameter("weight").to(self.device, self.dtype)
            # GPT-2's own kind of linear map holds its weight the other way round.
            weight = weight if isinstance(module, nn.Linear) else weight.T
            return Projection(weight, self._vector(getattr(module, "bias", None), weight.shape[0]))

    @torch.no_grad()
    def norm(self, module: nn.Module, width: int) -> Norm:
        """A norm of activations of this width."""
        with weights_at_hand(module):
            weight = getattr(module, "weight", None)
            gain = self._vector(None, width) + 1 if weight is None else self._vector(weight, width) + self.norm_offset
            bias = self._vector(getattr(module, "bias", None), width)
        # Llama's kind has another name for it.
        epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
        return Norm(gain, bias, epsilon, isinstance(module, nn.LayerNorm))

    def _vector(self, values: Tensor | None, width: int) -> Tensor:
        if values is None:
            return torch.zeros(width, device=self.device, dtype=self.dtype)
        return values.to(self.device, self.dtype)
