"""How far a number would be off on other text: standard errors from leaving out one part of the data after another."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

# More parts than these are put together, which costs no accuracy.
N_PARTS = 32

Statistics = Callable[[Float[Tensor, " sums"]], Mapping[str, float | None]]


def standard_errors(sums: Float[Tensor, "part sums"], statistics: Statistics) -> dict[str, float]:
    """Standard error of each statistic, by name; of those alone that are defined whatever part is left out.

    sums: for each part of the data, sums over its tokens. statistics: what follows from sums over any parts.
    Parts should depend on each other little: whole texts, or long runs of rows. Fewer than two give nothing.
    Source: Tukey's delete-one-group jackknife, as in Efron and Stein 1981, doi:10.1214/aos/1176345462.
    """
    parts = merged(sums, n_parts=N_PARTS)
    n = len(parts)
    if n < 2:
        return {}
    without = [statistics(parts.sum(dim=0) - part) for part in parts]
    errors = {}
    for name in without[0]:
        values = [found[name] for found in without]
        defined = [value for value in values if value is not None and math.isfinite(value)]
        if len(defined) == n:
            mean = sum(defined) / n
            errors[name] = math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in defined))
    return errors


def merged(sums: Float[Tensor, "part sums"], *, n_parts: int) -> Float[Tensor, "fewer sums"]:
    """At most so many parts, each the sum of several."""
    if len(sums) <= n_parts:
        return sums
    into = torch.arange(len(sums)) % n_parts
    return torch.zeros(n_parts, sums.shape[1], dtype=sums.dtype).index_add_(0, into, sums)
