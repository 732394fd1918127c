"""Norms whose denominator is a constant in every derivative; means that a norm takes off stay live."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.families.generic import is_norm
from circuitcli.models.rules.calls import Around, Watching
from circuitcli.models.rules.gradients import wide, with_gradient_of

_DENOMINATORS = frozenset(
    {torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt, torch.std, Tensor.std, torch.norm, Tensor.norm}
    | {torch.linalg.vector_norm}
)
_POWERS = frozenset({torch.pow, Tensor.pow, Tensor.__pow__})
_LAYER_NORMS = frozenset({nn.functional.layer_norm, torch.layer_norm})
_RMS_NORMS = frozenset({nn.functional.rms_norm, torch.rms_norm})


def frozen_norms(adapter: ModelAdapter) -> Iterator[tuple[nn.Module, Around]]:
    """Every norm of the model, inside attention too, and how it is run for that."""
    for name, module in adapter.model.named_modules():
        if is_norm(module) and not any(module.children()):
            yield module, _around(name, module)


def _around(name: str, module: nn.Module) -> Around:
    def call(forward: Any, *args: Any, **kwargs: Any) -> Any:
        with _Denominators() as seen:
            result = forward(*args, **kwargs)
        if seen.n_found == 0:
            raise InputError(
                f"the norm '{name}' ({type(module).__name__}) has no denominator that is understood",
                hint="use --method ig, which needs no rule for it",
            )
        return result

    return call


class _Denominators(Watching):
    """Cuts the gradients of denominators while a norm runs."""

    def __init__(self) -> None:
        super().__init__()
        self.n_found = 0

    def replaced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives, as a constant if it is a denominator."""
        is_root = func in _POWERS and isinstance(args[-1], float) and abs(args[-1]) == 0.5
        fused = func in _LAYER_NORMS or func in _RMS_NORMS
        self.n_found += func in _DENOMINATORS or is_root or fused
        result = func(*args, **kwargs)
        if func in _DENOMINATORS or is_root:
            return result.detach()
        if not fused or not result.requires_grad:
            return result
        carrier = _linear(*args, centres=func in _LAYER_NORMS, **kwargs)
        return with_gradient_of(carrier.to(result.dtype), result.detach)


def _linear(
    input: Tensor,  # as torch calls it
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
    cudnn_enable: bool = True,
    *,
    centres: bool,
) -> Tensor:
    """The norm of torch with its denominator held, without the bias, which is constant too."""
    x, axes = wide(input), tuple(range(-len(tuple(normalized_shape)), 0))
    epsilon = eps if eps is not None else 1e-5 if centres else torch.finfo(input.dtype).eps
    x = x - x.mean(dim=axes, keepdim=True) if centres else x
    scale = (x.detach().square().mean(dim=axes, keepdim=True) + epsilon).rsqrt()
    return x * scale if weight is None else x * scale * weight.detach().to(x.dtype)
