"""What attention does with its scores, whichever function of torch a family calls for that.

Families take a softmax of scores that they made themselves, or leave all to `scaled_dot_product_attention`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.calls import MATRIX_PRODUCTS, Around, Following
from circuitcli.models.rules.gradients import scaled_gradient, wide, with_gradient_of

_SOFTMAXES = frozenset({nn.functional.softmax, torch.softmax, Tensor.softmax})
_HINT = "use --method ig, which needs no rule for it"

# What stands in for ``softmax(scores)`` in derivatives: given the scores, and how to get the model's own pattern.
Pattern = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


def ruled_attention(adapter: ModelAdapter, pattern: Pattern, *, halves: bool) -> Iterator[tuple[nn.Module, Around]]:
    """The attention of every block, and how it is run.

    halves: in the product of pattern and values each factor gets half of its gradient.
    Raises InputError if a block has something else in place of attention.
    """
    names = {id(module): name for name, module in adapter.model.named_modules()}
    for layer, layout in enumerate(adapter.layouts):
        if layout.mixer is not None:
            raise InputError(f"block {layer} has no attention pattern: it has {layout.mixer}", hint=_HINT)
        if layout.attention is not None:
            module = adapter.module(layer, "attention")
            yield module, _around(names[id(module)], module, pattern, halves)


def _around(name: str, module: nn.Module, pattern: Pattern, halves: bool) -> Around:
    def call(forward: Any, *args: Any, **kwargs: Any) -> Any:
        with _Patterns(pattern, halves) as seen:
            result = forward(*args, **kwargs)
        if seen.n_products == 0:
            raise InputError(
                f"'{name}' ({type(module).__name__}) has no attention pattern that is understood", hint=_HINT
            )
        return result

    return call


class _Patterns(Following):
    """Changes the gradients of patterns while attention runs."""

    def __init__(self, pattern: Pattern, halves: bool) -> None:
        super().__init__(MATRIX_PRODUCTS, factor=0.5 if halves else 1.0)
        self._pattern = pattern

    def replaced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives, with the rule's gradient if it makes or uses a pattern."""
        if func in _SOFTMAXES:
            scores, *rest = args
            made = self._pattern(scores, lambda x: func(x, *rest, **kwargs))
            self.follow(made)
            return made
        if func is nn.functional.scaled_dot_product_attention:
            self.n_products += 1
            return self._attended(func, args, kwargs)
        return super().replaced(func, args, kwargs)

    def _attended(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The values that torch's own attention gives, with the gradient of its parts written out."""
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in args if isinstance(x, Tensor)):
            return func(*args, **kwargs)
        with torch.no_grad():
            result = func(*args, **kwargs)
        scores, value = _scores(*args, **kwargs)
        carrier = scaled_gradient(self._pattern(scores, _softmax) @ wide(value), self.factor)
        return with_gradient_of(carrier.to(result.dtype), lambda: result)


def _softmax(scores: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """The pattern; nothing where a row may attend to nothing."""
    return scores.softmax(dim=-1).masked_fill(scores.amax(dim=-1, keepdim=True) == -math.inf, 0.0)


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scores that torch's own attention takes the softmax of, and a value for each head, from its arguments."""
    if enable_gqa:
        n_shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(n_shared, dim=-3), value.repeat_interleave(n_shared, dim=-3)
    query, key = wide(query), wide(key)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores, value
    return (
        scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask,
        value,
    )
