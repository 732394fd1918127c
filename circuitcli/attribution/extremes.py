"""The largest values of each sign, of all that come piece by piece."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

P = TypeVar("P")


class Strongest(Generic[P]):
    """The ``count`` largest positive and the ``count`` most negative values of all that were added, in pieces."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[bool, list[tuple[P, int, float, tuple[float, ...]]]] = {True: [], False: []}

    def add(self, piece: P, values: Float[Tensor, " n"], more: Float[Tensor, "m n"] | None = None) -> None:
        """Take in the values of a piece, with ``more`` numbers that belong to each; of equals those that came first
        stay."""
        both = [
            (piece, index, value, () if more is None else tuple(more[:, index].tolist()))
            for index, value in extremes(values, self._count)
        ]
        for sign, found in self._found.items():
            found += [entry for entry in both if (entry[2] > 0) == sign]
            found.sort(key=lambda entry: -abs(entry[2]))
            del found[self._count :]

    def entries(self) -> list[tuple[P, int, float, tuple[float, ...]]]:
        """Piece, index in it, value and more: the positive ones, then the negative ones, strongest first."""
        return [*self._found[True], *self._found[False]]

    def found(self) -> list[tuple[P, int, float]]:
        """`entries` without more."""
        return [(piece, index, value) for piece, index, value, _ in self.entries()]


def extremes(values: Float[Tensor, " n"], count: int) -> Sequence[tuple[int, float]]:
    """Index and value of the ``count`` largest positive and the ``count`` most negative values, strongest first."""
    found: list[tuple[int, float]] = []
    size = min(count, values.numel())
    for sign in (1.0, -1.0):
        top = (values * sign).topk(size)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found += [(index, sign * value) for index, value in pairs if value > 0]
    return found
