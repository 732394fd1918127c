"""Tensors whose numbers stay what they are while their gradient is another."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def with_gradient_of(carrier: Tensor, value: Callable[[], Tensor]) -> Tensor:
    """What ``value`` gives, to the last bit; gradients go to ``carrier``, of the same shape, as if that were it."""
    return _Carried.apply(value, carrier)


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The same numbers; gradients go on times the factor."""
    return _Scaled.apply(x, factor) if x.requires_grad and factor != 1.0 else x


def wide(x: Tensor) -> Tensor:
    """At least in single precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _Carried(torch.autograd.Function):
    """The value is not an input: autograd would hand out a view of it, which models may not change in place."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], carrier: Tensor) -> Tensor:
        made = value()
        assert made.shape == carrier.shape, (made.shape, carrier.shape)
        ctx.dtype = carrier.dtype
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, gradients[0].to(ctx.dtype)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None
