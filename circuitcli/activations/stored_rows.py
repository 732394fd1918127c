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
        sums = RowSums()
        for piece in values.split(max(1, CACHED_NUMBERS // values.shape[1])):
            sums.add(piece)
        return sums.over(values.contiguous().cpu() if memory is None else memory.copy_(values))

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return math.isfinite(self.sum_square_norm)


class RowSums:
    """Sums over rows that come a few at a time, best while the processor has them in its cache."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._scratch = torch.empty(0)

    def add(self, rows: Float[Tensor, "row d_model"]) -> None:
        """Take in the next rows, at least one, in the dtype to store."""
        if rows.dtype != torch.float32:
            # One piece of memory for all: fresh memory costs more than the sums.
            if self._scratch.numel() < rows.numel():
                self._scratch = rows.new_empty(rows.numel(), dtype=torch.float32)
            rows = self._scratch[: rows.numel()].view(rows.shape).copy_(rows)
        self._sums.append(rows.sum(dim=0))
        self._norms.append(torch.linalg.vector_norm(rows, dim=-1))

    def over(self, values: Float[Tensor, "row d_model"]) -> StoredRows:
        """The sums of all rows so far, which are ``values``."""
        norm, total = torch.cat(self._norms).cpu().double(), torch.stack(self._sums).cpu().double().sum(dim=0)
        return StoredRows(values, total, float(norm.sum()), float(norm.square().sum()))
