"""Which number type activations are stored in, chosen by the first of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.storage.shards import DTYPES
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


class Spread:
    """Range, variance and rounding of activations that come a few at a time; takes the memory of a few rows."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._n_rows, self._square = 0, 0.0
        self._sum: Tensor | float = 0.0
        self._errors = dict.fromkeys(ORDER, 0.0)

    @classmethod
    def of(cls, rows: Float[Tensor, "row d_model"]) -> "Spread":
        """That of some rows."""
        spread = cls()
        spread.add(rows)
        return spread

    def add(self, rows: Float[Tensor, "row d_model"]) -> None:
        """Take in further rows, at least one."""
        exact = rows.double()
        # Of NaN nothing is larger: what holds it is refused where it would be stored.
        self.largest = max(self.largest, float(exact.abs().max()))
        self._n_rows, self._sum = self._n_rows + len(rows), self._sum + exact.sum(dim=0)
        self._square += float(exact.square().sum())
        for name in ORDER:
            self._errors[name] += float((exact - rows.to(DTYPES[name]).double()).square().sum())

    def rounding(self, name: str) -> float:
        """Mean squared rounding error in a type over the variance of the rows; over their mean square if that is 0."""
        mean_square = float(torch.as_tensor(self._sum).square().sum()) / max(1, self._n_rows)
        variance = self._square - mean_square
        whole = variance if variance > 1e-12 * self._square else self._square
        return self._errors[name] / whole if whole > 0 else 0.0


def suited(hook: HookPoint, spread: Spread) -> NumberType:
    """The first type of `ORDER` that suits the activations at a hook point, by range and by rounding."""
    reasons: list[str] = []
    for name in ORDER[:-1]:
        reason = _misfit(hook, spread, name)
        if reason is None:
            return NumberType(name, "; ".join(reasons))
        reasons.append(reason)
    return NumberType(ORDER[-1], "; ".join(reasons))


def _misfit(hook: HookPoint, spread: Spread, name: str) -> str | None:
    """What is wrong with a type for some activations, None for nothing."""
    end, share = torch.finfo(DTYPES[name]).max, spread.rounding(name)
    if spread.largest * ROOM > end:
        return f"{hook} reaches {spread.largest:,.0f}, but {name} ends at {end:,.0f}"
    return f"{name} would round away {100 * share:.3g} % of the variance at {hook}" if share > MOST_ROUNDING else None
