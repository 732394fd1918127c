"""Which number type activations are stored in, chosen by the first of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.shards import DTYPES
from circuitcli.hookpoints import HookPoint

# From the smallest range and the least rounding for two bytes to what is always good enough.
ORDER = ("float16", "bfloat16", "float32")
# Rare tokens have activations some times as large as those of a few thousand tokens.
ROOM = 4.0
# Of the variance that coders explain and baselines are means of; rounding of ordinary activations takes 1e-7 of it in
# float16 and 1e-5 in bfloat16, and more where a large constant part hides a small varying one.
MOST_ROUNDING = 2e-5


@dataclass(frozen=True)
class NumberType:
    """The chosen type, and why not the ones before it, for people."""

    dtype: str
    reason: str


def suited(rows: Mapping[HookPoint, Float[Tensor, "row d_model"]]) -> NumberType:
    """The first type of `ORDER` that suits the activations at all hook points, by range and by rounding."""
    reasons: list[str] = []
    for dtype in ORDER[:-1]:
        reason = next((found for hook, values in rows.items() if (found := _misfit(hook, values, dtype))), None)
        if reason is None:
            return NumberType(dtype, "; ".join(reasons))
        reasons.append(reason)
    return NumberType(ORDER[-1], "; ".join(reasons))


def _misfit(hook: HookPoint, values: Tensor, name: str) -> str | None:
    """What is wrong with a type for some activations, None for nothing."""
    x, dtype = values.float(), DTYPES[name]
    largest, end = float(x.abs().max()), torch.finfo(dtype).max
    if largest * ROOM > end:
        return f"{hook} reaches {largest:,.0f}, and {name} ends at {end:,.0f}"
    share = rounding_share(x, dtype)
    return f"{name} would round away {share:.1g} of the variance at {hook}" if share > MOST_ROUNDING else None


def rounding_share(x: Float[Tensor, "row d_model"], dtype: torch.dtype) -> float:
    """Mean squared rounding error in the type over the variance of the rows; over their mean square if that is 0."""
    exact = x.double()
    error = (exact - x.to(dtype).double()).square().sum()
    spread = (exact - exact.mean(dim=0)).square().sum()
    whole = spread if float(spread) > 0 else exact.square().sum()
    return float(error / whole) if float(whole) > 0 else 0.0
