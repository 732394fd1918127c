"""The one-to-one matching of rows with columns whose scores add up to most."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


def best_assignment(scores: Float[NDArray[np.floating], "row column"]) -> Int[NDArray[np.intp], " row"]:
    """The column of each row, all different, with the largest sum of scores; there are at least as many columns.

    Rows are added one after the other, each along a shortest path that changes earlier rows (Kuhn 1955; the form of
    Jonker & Volgenant 1987, doi:10.1007/BF02278710). Rows whose best column nobody else wants take it at once.
    """
    n_rows, n_columns = scores.shape
    if n_rows > n_columns:
        raise ValueError(f"{n_rows} rows cannot have a column each of {n_columns}")
    costs = -scores.astype(np.float64)
    by_row, by_column = costs.min(axis=1), np.zeros(n_columns)
    owner = np.full(n_columns, -1)
    wanted, first = np.unique(costs.argmin(axis=1), return_index=True)
    owner[wanted] = first
    for row in np.setdiff1d(np.arange(n_rows), first):
        _add(int(row), costs, by_row, by_column, owner)
    columns = np.empty(n_rows, dtype=np.intp)
    taken = owner >= 0
    columns[owner[taken]] = taken.nonzero()[0]
    return columns


def _add(
    row: int,
    costs: NDArray[np.float64],
    by_row: NDArray[np.float64],
    by_column: NDArray[np.float64],
    owner: NDArray[np.intp],
) -> None:
    """Give a row a column, along the path of least reduced cost to one that is free (Dijkstra)."""
    n_columns = costs.shape[1]
    distance, before = np.full(n_columns, np.inf), np.full(n_columns, -1)
    is_done = np.zeros(n_columns, dtype=bool)
    at, length, column = row, 0.0, -1
    reached: list[tuple[int, int]] = []
    while True:
        through = length + costs[at] - by_row[at] - by_column
        is_nearer = ~is_done & (through < distance)
        distance[is_nearer], before[is_nearer] = through[is_nearer], column
        open_ = np.where(is_done, np.inf, distance)
        column = int(open_.argmin())
        length = float(open_[column])
        is_done[column] = True
        if owner[column] < 0:
            break
        at = int(owner[column])
        reached.append((at, column))
    by_row[row] += length
    for other, held in reached:
        by_row[other] += length - distance[held]
        by_column[held] -= length - distance[held]
    while column >= 0:
        previous = int(before[column])
        owner[column] = owner[previous] if previous >= 0 else row
        column = previous
