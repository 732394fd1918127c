"""The model with attention patterns and the denominators of norms held constant: all else about them stays live.

Families write their attention and norms each in their own way, but all by a few torch functions. Those are watched:
what a first run gives is kept, and cut off from what made it. In later runs of the same blocks, on rows of other
activations, it takes the place of what they would give, so that such a run is an affine function of what enters it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SOFTMAX = frozenset({torch.softmax, Tensor.softmax, F.softmax})
_RSQRT = frozenset({torch.rsqrt, Tensor.rsqrt})


class Frozen(TorchFunctionMode):
    """While this is open, models run with constant patterns and denominators: those of the first run, or, in
    `again`, those that it kept."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Tensor] = []
        # Which one is next in a later run; None in the first.
        self._next: int | None = None

    @contextmanager
    def again(self) -> Iterator[None]:
        """A run of the same blocks with what was kept. Nothing is kept."""
        self._next = 0
        try:
            with self:
                yield
        finally:
            self._next = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SOFTMAX or func in _RSQRT:
            return self._constant(lambda: func(*args, **kwargs))
        if func is F.scaled_dot_product_attention:
            return self._attended(*args, **kwargs)
        if func is F.layer_norm or func is torch.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if func is F.rms_norm:
            return self._rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _constant(self, value: Callable[[], Tensor]) -> Tensor:
        if self._next is None:
            self._kept.append(value().detach())
            return self._kept[-1]
        self._next += 1
        with torch.no_grad():
            return _of_rows(self._kept[self._next - 1], like=value())

    def _attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "*batch query d_value"]:
        if enable_gqa:
            key, value = (one.repeat_interleave(query.shape[-3] // one.shape[-3], dim=-3) for one in (key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale

        def pattern() -> Tensor:
            scores = (query @ key.transpose(-1, -2)) * factor
            if is_causal:
                scores = scores.masked_fill(
                    torch.ones_like(scores, dtype=torch.bool).triu(1 + scores.shape[-1] - scores.shape[-2]),
                    float("-inf"),
                )
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, float("-inf"))
            elif attn_mask is not None:
                scores = scores + attn_mask
            return scores.softmax(dim=-1)

        return self._constant(pattern).to(value) @ value

    def _layer_norm(
        self,
        x: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Tensor:
        axes = tuple(range(-len(normalized_shape), 0))
        wide = _wide(x)
        centred = wide - wide.mean(dim=axes, keepdim=True)
        scale = self._constant(lambda: (centred.square().mean(dim=axes, keepdim=True) + eps) ** -0.5)
        return _with_gain(centred * scale, weight, bias).to(x)

    def _rms_norm(
        self, x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        axes = tuple(range(-len(normalized_shape), 0))
        wide = _wide(x)
        least = torch.finfo(x.dtype).eps if eps is None else eps
        scale = self._constant(lambda: (wide.square().mean(dim=axes, keepdim=True) + least) ** -0.5)
        return _with_gain(wide * scale, weight, None).to(x)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _with_gain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _of_rows(kept: Tensor, *, like: Tensor) -> Tensor:
    """What was kept of one text, for rows of its copies; batch and heads, or batch and positions, may be one axis."""
    if kept.shape[0] == 1:
        return kept.expand_as(like)
    return kept.repeat(like.shape[0] // kept.shape[0], *[1] * (kept.ndim - 1))
