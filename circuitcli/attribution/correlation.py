"""How alike two lists of numbers are."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating]


def correlation(first: Numbers, second: Numbers) -> float | None:
    """Pearson's; None of fewer than three values, or where all of one side are alike."""
    if len(first) < 3:
        return None
    centred = [values - values.mean() for values in (first, second)]
    sizes = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / sizes if sizes > 0 else None


def rank_correlation(first: Numbers, second: Numbers) -> float | None:
    """Spearman's, with mean ranks for ties; None of fewer than three values, or where all of one side are alike."""
    return correlation(mean_ranks(first), mean_ranks(second))


def mean_ranks(values: Numbers) -> NDArray[np.float64]:
    """The place of each value among all, from 1; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[which]
    return ranks
