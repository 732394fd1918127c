"""Activation functions of MLPs as constant factors, and the products of gated MLPs shared between their factors."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.calls import MULTIPLICATIONS, PROJECTIONS, Around, Following
from circuitcli.models.rules.gradients import wide, with_gradient_of

_MODULES = ("transformers.activations", "torch.nn.modules.activation")
# A weight of one among several, and gates: they are no functions of one preactivation that is passed on.
_OTHERS = (nn.Softmax, nn.Sigmoid, nn.MultiheadAttention)
# Beside 0, where f(x) / x is taken as the mean slope between here and there.
_NEAR = 1e-4


def linear_activations(adapter: ModelAdapter) -> Iterator[tuple[nn.Module, Around]]:
    """Every block with an MLP, and the activation functions there, and how they are run."""
    gates = _Gates()
    for layer, layout in enumerate(adapter.layouts):
        if layout.feed_forward is not None:
            block = adapter.blocks[layer]
            yield block, gates.around_block(f"block {layer} ({type(block).__name__})")
            yield from ((module, gates.around_activation) for module in _activations(adapter, layer))


def _activations(adapter: ModelAdapter, layer: int) -> list[nn.Module]:
    """The activation functions of a block that are not part of its attention."""
    layout, block = adapter.layouts[layer], adapter.blocks[layer]
    known = [] if layout.mlp is None else [block.get_submodule(layout.mlp.activation)]
    inside = set() if layout.attention is None else set(adapter.module(layer, "attention").modules())
    found = [module for module in block.modules() if module not in inside and _is_activation(module)]
    return list(dict.fromkeys([*known, *found]))


def _is_activation(module: nn.Module) -> bool:
    kind = type(module)
    return not isinstance(module, _OTHERS) and (kind.__module__ in _MODULES or "gelu" in kind.__name__.lower())


class _Gates:
    """Follows what activation functions give in the block that runs, to where it is multiplied."""

    def __init__(self) -> None:
        self._running: list[Following] = []

    def around_block(self, name: str) -> Around:
        """How a block runs: products of what its activation functions give get half of their gradient."""

        def call(forward: Any, *args: Any, **kwargs: Any) -> Any:
            with Following(MULTIPLICATIONS, PROJECTIONS) as following:
                self._running.append(following)
                try:
                    result = forward(*args, **kwargs)
                finally:
                    self._running.pop()
            if following.n_followed == 0:
                raise InputError(
                    f"the MLP of {name} has no activation function that is understood",
                    hint="use --method ig, which needs no rule for it",
                )
            return result

        return call

    def around_activation(self, forward: Any, x: Tensor) -> Tensor:
        """How an activation function runs: f(x) = x * (f(x) / x), with the second factor constant."""
        result = linear(forward, x) if x.requires_grad and torch.is_grad_enabled() else forward(x)
        for following in self._running[-1:]:
            following.follow(result)
        return result


def linear(function: Any, x: Tensor) -> Tensor:
    """``function(x)``, whose derivative is ``function(x) / x``; at 0 the slope there."""
    with torch.no_grad():
        value = function(x)
        near = torch.full_like(x, _NEAR)
        slope = (wide(function(near)) - wide(function(-near))) / (2 * wide(near))
        factor = torch.where(x == 0, slope, wide(value) / torch.where(x == 0, near, x))
    return with_gradient_of((wide(x) * factor).to(value.dtype), lambda: value)
