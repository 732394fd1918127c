"""Watching the torch functions that a module calls, to give the results of some another gradient.

Families write their attention, norms and gates in Python, each a little differently, but all by the same few functions.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from circuitcli.models.rules.gradients import scaled_gradient

MULTIPLICATIONS = frozenset({torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__})
MATRIX_PRODUCTS = frozenset(
    {torch.matmul, torch.bmm, torch.einsum, torch.baddbmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
)
PROJECTIONS = frozenset({nn.functional.linear, torch.addmm, Tensor.addmm}) | MATRIX_PRODUCTS

# Runs a module in another way: given its own forward, and what it is called with.
Around = Callable[..., Any]


class Watching(TorchFunctionMode):
    """Asks `replaced` what each torch function gives."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return self.replaced(func, args, kwargs or {})

    def replaced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives."""
        return func(*args, **kwargs)


class Following(Watching):
    """Follows tensors through casts, dropout and the like up to the functions that multiply them."""

    def __init__(self, products: Iterable[Any], ends: Iterable[Any] = (), *, factor: float = 0.5) -> None:
        """factor: of the gradients of products; with a half each factor of a product gets half of its own.

        ends: functions that are no such products and behind which nothing is followed.
        """
        super().__init__()
        self.factor = factor
        self._products, self._ends = frozenset(products), frozenset(ends)
        self._followed: list[Tensor] = []
        self.n_followed = self.n_products = 0

    def follow(self, x: Tensor) -> None:
        """Follow a tensor in place of those before."""
        self._followed = [x]
        self.n_followed += 1

    def replaced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives, with its part of the gradient if it multiplies what is followed."""
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not any(arg is tensor for arg in args for tensor in self._followed):
            return result
        if func in self._products:
            self.n_products += 1
            return scaled_gradient(result, self.factor)
        if func not in self._ends:
            self._followed.append(result)
        return result
