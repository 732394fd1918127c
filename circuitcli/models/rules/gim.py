"""GIM (Edin et al. 2025, arXiv:2505.17630): gradients that see interactions within attention.

The denominators of norms are constants. Gradients pass the softmax of attention as if its pattern were that at
temperature 2 (without the factor 1/2 of a softmax of halved scores, as in the authors' `gim-explain`). Of the product
of pattern and values each factor gets half of its gradient, and of the scores query and key again: queries and keys get
a quarter, values a half.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.attention import ruled_attention
from circuitcli.models.rules.calls import Around
from circuitcli.models.rules.gradients import scaled_gradient
from circuitcli.models.rules.norms import frozen_norms

TEMPERATURE = 2.0


def parts(adapter: ModelAdapter) -> Iterator[tuple[nn.Module, Around]]:
    """The modules whose derivative the rule changes, and how they are run for that."""
    yield from frozen_norms(adapter)
    yield from ruled_attention(adapter, _tempered, halves=True)


def _tempered(scores: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    return _Tempered.apply(softmax, scaled_gradient(scores, 0.5))


class _Tempered(torch.autograd.Function):
    """The pattern, with the Jacobian that the pattern at a higher temperature has by its own scores."""

    @staticmethod
    def forward(ctx: Any, softmax: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
        pattern = softmax(scores)
        ctx.save_for_backward(softmax(scores / TEMPERATURE))
        ctx.dtype = scores.dtype
        return pattern

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (warm,) = ctx.saved_tensors
        flow = gradients[0] * warm
        return None, (flow - warm * flow.sum(dim=-1, keepdim=True)).to(ctx.dtype)
