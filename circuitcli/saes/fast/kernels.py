"""Sums over entries of sparse codes on a GPU, in Triton; `saes.sparse` is their definition and their fallback.

Both kernels read each row that an entry names once and write each result once, so they take the time of
``entries * d`` numbers of memory traffic. Sums have a fixed order: the same numbers come out every time, which adding
atomically would not give.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

# Entries that one program sums; longer segments are shared by several, whose sums are added up afterwards. Some
# features are active on every token, most on a handful.
_SHARE = 64
_ENTRIES_AT_ONCE = 8
_MOST_COLUMNS = 256


def segment_sums(
    rows: Float[Tensor, "row d"],
    weights: Float[Tensor, " entry"],
    indices: Int[Tensor, " entry"],
    starts: Int[Tensor, " segment"],
) -> Float[Tensor, "segment d"]:
    """For each segment of entries the sum of ``weights * rows[indices]``; a segment ends where the next one starts."""
    n_entries, n_segments = len(indices), len(starts)
    stops = torch.cat([starts[1:], starts.new_full((1,), n_entries)])
    n_shares = (stops - starts + _SHARE - 1) // _SHARE
    last = n_shares.cumsum(0)
    # As many as there can be: to count them would wait for the device.
    number = torch.arange(n_entries // _SHARE + min(n_segments, n_entries), device=rows.device)
    segment = torch.searchsorted(last, number, right=True).clamp_max(max(0, n_segments - 1))
    begin = starts[segment] + (number - (last - n_shares)[segment]) * _SHARE
    # Those that do not exist lie behind their segment's end, and are empty.
    end = torch.minimum(begin + _SHARE, stops[segment])
    shares = _summed(rows, weights, indices, begin, end)
    return _summed(shares, None, None, last - n_shares, last)


def products(
    left: Float[Tensor, "row d"],
    left_indices: Int[Tensor, " entry"],
    right: Float[Tensor, "other d"],
    right_indices: Int[Tensor, " entry"],
) -> Float[Tensor, " entry"]:
    """For each entry the scalar product of a row of ``left`` and one of ``right``."""
    left, right = left.contiguous(), right.contiguous()
    out = left.new_empty(len(left_indices))
    if len(out):
        columns = _columns(left.shape[1])
        grid = (triton.cdiv(len(out), _ENTRIES_AT_ONCE),)
        _products_kernel[grid](
            left,
            left_indices,
            right,
            right_indices,
            out,
            len(out),
            left.shape[1],
            ENTRIES=_ENTRIES_AT_ONCE,
            COLUMNS=columns,
        )
    return out


def _summed(
    rows: Tensor, weights: Tensor | None, indices: Tensor | None, starts: Tensor, stops: Tensor
) -> Float[Tensor, "segment d"]:
    """One program for each segment and some columns. Without weights and indices, entry n is row n."""
    rows, d = rows.contiguous(), rows.shape[1]
    out = rows.new_empty(len(starts), d)
    if out.numel():
        columns = _columns(d)
        grid = (len(starts), triton.cdiv(d, columns))
        _sums_kernel[grid](
            rows,
            rows if weights is None else weights.contiguous(),
            starts if indices is None else indices.contiguous(),
            starts.contiguous(),
            stops.contiguous(),
            out,
            d,
            IS_WEIGHTED=weights is not None,
            ENTRIES=_ENTRIES_AT_ONCE,
            COLUMNS=columns,
        )
    return out


def _columns(d: int) -> int:
    return min(_MOST_COLUMNS, triton.next_power_of_2(d))


# No checks of types at run time, which tests add to all other functions: Triton compiles these.
@triton.jit
@no_type_check
def _sums_kernel(
    rows,
    weights,
    indices,
    starts,
    stops,
    out,
    d,
    IS_WEIGHTED: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < d
    start = tl.load(starts + segment)
    stop = tl.load(stops + segment)
    total = tl.zeros((COLUMNS,), dtype=out.dtype.element_ty)
    for first in range(start, stop, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        is_entry = entry < stop
        if IS_WEIGHTED:
            row = tl.load(indices + entry, mask=is_entry, other=0).to(tl.int64)
        else:
            row = entry.to(tl.int64)
        values = tl.load(
            rows + row[:, None] * d + column[None, :], mask=is_entry[:, None] & is_column[None, :], other=0.0
        )
        if IS_WEIGHTED:
            values = values * tl.load(weights + entry, mask=is_entry, other=0.0)[:, None]
        total += tl.sum(values, axis=0)
    tl.store(out + segment * d + column, total, mask=is_column)


@triton.jit
@no_type_check
def _products_kernel(
    left, left_indices, right, right_indices, out, n_entries, d, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    is_entry = entry < n_entries
    ours = tl.load(left_indices + entry, mask=is_entry, other=0).to(tl.int64)
    theirs = tl.load(right_indices + entry, mask=is_entry, other=0).to(tl.int64)
    total = tl.zeros((ENTRIES,), dtype=out.dtype.element_ty)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = is_entry[:, None] & (column < d)[None, :]
        one = tl.load(left + ours[:, None] * d + column[None, :], mask=mask, other=0.0)
        other = tl.load(right + theirs[:, None] * d + column[None, :], mask=mask, other=0.0)
        total += tl.sum(one * other, axis=1)
    tl.store(out + entry, total, mask=is_entry)
