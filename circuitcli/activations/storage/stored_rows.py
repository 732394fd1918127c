"""Rows as they are stored, with the sums over them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# So many numbers stay in the processor's cache while they are rounded and summed up.
CACHED_NUMBERS = 131_072


@dataclass(frozen=True)
class StoredRows:
    """Rows as they are stored, on the CPU, with the float64 sums over them: rows, their norms, their squared norms.

    The sums are of the rounded rows, taken in float32 over a few hundred rows and in float64 over those: exact to about
    1e-6.
    """

    values: Float[Tensor, "row d_model"]
    sum: Float[Tensor, " d_model"]
    sum_norm: float
    sum_square_norm: float

    @classmethod
    def of(
        cls, values: Float[Tensor, "row d_model"], memory: Float[Tensor, "row d_model"] | None = None
    ) -> "StoredRows":
        """Sum up rows, already in the dtype to store, on the device where they are; ``memory`` is where to put them."""
        pieces = values.split(max(1, CACHED_NUMBERS // values.shape[1]))
        sums = RowSums(*values.shape, n_times=len(pieces), device=values.device)
        for piece in pieces:
            sums.add(piece)
        return sums.over(values.contiguous().cpu() if memory is None else memory.copy_(values))

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return math.isfinite(self.sum_square_norm)


class RowSums:
    """Sums over rows that come a few at a time, best while the processor has them in its cache."""

    def __init__(self, n_rows: int, d_model: int, *, n_times: int, device: torch.device | None = None) -> None:
        """n_rows, n_times: how many rows will come, and in how many pieces."""
        # Results go into memory that is taken once: as tensors of their own they take half of the time again.
        self._sums = torch.empty(n_times, d_model, device=device)
        self._norms = torch.empty(n_rows, device=device)
        self._rounded = torch.empty(0, d_model, device=device)
        self._n_rows = self._n_times = 0

    def add(self, rows: Float[Tensor, "row d_model"]) -> None:
        """Take in the next rows, at least one, in the dtype to store."""
        if rows.dtype != torch.float32:
            if len(self._rounded) < len(rows):
                self._rounded = torch.empty_like(rows, dtype=torch.float32)
            rows = self._rounded[: len(rows)].copy_(rows)
        last = self._n_rows + len(rows)
        torch.sum(rows, dim=0, out=self._sums[self._n_times])
        torch.linalg.vector_norm(rows, dim=-1, out=self._norms[self._n_rows : last])
        self._n_rows, self._n_times = last, self._n_times + 1

    def over(self, values: Float[Tensor, "row d_model"]) -> StoredRows:
        """The sums of all rows, which are ``values``."""
        norms, total = self._norms.cpu().double(), self._sums.cpu().double().sum(dim=0)
        return StoredRows(values, total, float(norms.sum()), float(norms.square().sum()))
