"""Many normal numbers of which few are looked at: first the interval in which each lies, then those few exactly.

Which of millions of numbers are above a threshold is mostly clear from 16 of their bits, and these cost a third.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt16
from numpy.typing import NDArray
from torch import Tensor

_INTERVALS = 2**16


@cache
def _upper_ends() -> Float[NDArray[np.float32], " interval"]:
    """Of each interval, all equally likely, the largest first; no number in one is above its end."""
    shares = torch.arange(_INTERVALS, dtype=torch.float64) / _INTERVALS
    ends = -torch.special.ndtri(shares)
    return np.nextafter(ends.float().numpy(), np.float32(np.inf))


def coarse_normals(
    shape: tuple[int, int], generator: torch.Generator
) -> tuple[Float[Tensor, "row column"], UInt16[NDArray[np.uint16], " entry"]]:
    """What standard normal numbers are at most, infinite for the largest, and the interval of each, row after row."""
    n = shape[0] * shape[1]
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    intervals = bits.numpy().view(np.uint16)[:n]
    return torch.from_numpy(np.take(_upper_ends(), intervals, mode="wrap")).view(shape), intervals


def exact_normals(
    intervals: UInt16[NDArray[np.uint16], " entry"], generator: torch.Generator
) -> Float[Tensor, " entry"]:
    """The normal numbers that lie in these intervals, float64 rounded to float32."""
    within = torch.rand(len(intervals), dtype=torch.float64, generator=generator)
    # Zero would be no number.
    shares = (torch.from_numpy(intervals.astype(np.float64)) + within).clamp_min(2**-40) / _INTERVALS
    return -torch.special.ndtri(shares).float()
