"""One-to-one matching against trying out all matchings."""

from itertools import permutations

import numpy as np
import pytest

from circuitcli.evaluation.assignment import best_assignment


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (2, 5), (4, 4), (5, 6)])
def test_the_matching_has_the_largest_sum_of_all(n_rows: int, n_columns: int) -> None:
    rng = np.random.default_rng(7)
    for _ in range(10):
        # Ties, and columns that several rows want most.
        scores = rng.integers(-3, 4, (n_rows, n_columns)) + rng.normal(size=n_columns)
        best = max(
            sum(scores[row, column] for row, column in enumerate(chosen))
            for chosen in permutations(range(n_columns), n_rows)
        )
        columns = best_assignment(scores)
        assert len(set(columns.tolist())) == n_rows
        assert scores[np.arange(n_rows), columns].sum() == pytest.approx(best)


def test_equal_scores_and_too_many_rows_are_no_trap() -> None:
    assert len(set(best_assignment(np.ones((30, 40))).tolist())) == 30
    with pytest.raises(ValueError, match="3 rows"):
        best_assignment(np.zeros((3, 2)))


def test_permuted_rows_find_their_places() -> None:
    order = np.random.default_rng(0).permutation(200)
    assert (best_assignment(np.eye(200)[order]) == order).all()
