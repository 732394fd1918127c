"""The one-to-one matching of rows with columns whose scores add up to most."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


def best_assignment(scores: Float[NDArray[np.floating], "row column"]) -> Int[NDArray[np.intp], " row"]:
    """The column of each row, all different, with the largest sum of scores (Hungarian method, as of Jonker & Volgenant
    1987, doi:10.1007/BF02278710). Raises ValueError where there are fewer columns than rows."""
    from scipy.optimize import linear_sum_assignment

    n_rows, n_columns = scores.shape
    if n_rows > n_columns:
        raise ValueError(f"{n_rows} rows cannot have a column each of {n_columns}")
    rows, columns = linear_sum_assignment(scores, maximize=True)
    assert (rows == np.arange(n_rows)).all()
    return columns
