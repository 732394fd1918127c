"""The gradients of a stack of autoencoders, by sums over the codes that are not zero, or by dense products."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

# Above this share of codes that are not zero, dense products are faster. A step of the default sweep's gradients, one
# thread of an AMD EPYC: 11.0 ms with 0.25, 10.5 with 0.35, 11.2 with 0.5 after 1,500 steps; 13.2, 12.9, 13.6 after 300.
DENSE_SHARE = 0.35


class Gradients(NamedTuple):
    """Of the mean loss of each autoencoder, by its own weights."""

    W_enc: Float[Tensor, "feature d_model"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]


@dataclass(frozen=True)
class Layout:
    """Where autoencoders lie in the stack.

    parts: the rows of each. groups: runs of autoencoders of one width, as (rows, their number, width).
    owner: whose each feature is. penalty: the weight of each feature's mean code in the loss.
    """

    parts: tuple[slice, ...]
    groups: tuple[tuple[slice, int, int], ...]
    owner: Int[Tensor, " feature"]
    penalty: Float[Tensor, " feature"]

    @classmethod
    def of(cls, widths: Sequence[int], weights: Sequence[float], device: torch.device) -> "Layout":
        """Autoencoders of these widths, one after the other, with the weights of their penalties."""
        stops = np.cumsum(widths).tolist()
        starts = [stop - width for stop, width in zip(stops, widths, strict=True)]
        groups, first = list[tuple[slice, int, int]](), 0
        for index in range(1, len(widths) + 1):
            if index == len(widths) or widths[index] != widths[first]:
                groups.append((slice(starts[first], stops[index - 1]), index - first, widths[first]))
                first = index
        sizes = torch.tensor(widths)
        return cls(
            tuple(map(slice, starts, stops)),
            tuple(groups),
            torch.repeat_interleave(torch.arange(len(widths)), sizes).to(device),
            torch.repeat_interleave(torch.tensor(weights, dtype=torch.float32), sizes).to(device),
        )

    def part(self, first: int, stop: int) -> "tuple[slice, Layout]":
        """Some of them that lie together and have one width: their rows, and a stack of them alone."""
        rows = slice(self.parts[first].start, self.parts[stop - 1].stop)
        width, n = self.parts[first].stop - rows.start, stop - first
        parts = tuple(slice(index * width, (index + 1) * width) for index in range(n))
        own = Layout(parts, ((slice(0, n * width), n, width),), self.owner[rows] - first, self.penalty[rows])
        return rows, own

    def runs(self, chosen: Sequence[int]) -> list[tuple[int, int]]:
        """First and stop of those among the chosen that lie together and have one width."""
        runs = list[tuple[int, int]]()
        for index in chosen:
            first, stop = runs[-1] if runs else (index, -1)
            if stop == index and self._width(first) == self._width(index):
                runs[-1] = first, index + 1
            else:
                runs.append((index, index + 1))
        return runs

    def _width(self, index: int) -> int:
        return self.parts[index].stop - self.parts[index].start

    @property
    def n(self) -> int:
        """How many autoencoders there are."""
        return len(self.parts)


def encoded(
    x: Float[Tensor, "batch d_model"], W_enc: Float[Tensor, "feature d_model"], b_enc: Float[Tensor, " feature"]
) -> Float[Tensor, "feature batch"]:
    """Pre-activations of all features, feature after feature, so that the active ones are found in that order."""
    return torch.addmm(b_enc[:, None], W_enc, x.T)


def gradients(
    x: Float[Tensor, "batch d_model"],
    pre: Float[Tensor, "feature batch"],
    W_dec: Float[Tensor, "feature d_model"],
    layout: Layout,
) -> Gradients:
    """Of all autoencoders; ``pre`` is used up. On the CPU those with sparse codes get theirs by sums over these."""
    if pre.device.type != "cpu":
        return dense_gradients(x, pre, W_dec, layout)
    active = torch.from_numpy(np.flatnonzero(pre.numpy().reshape(-1) > 0))
    dense = _dense_ones(active, layout, batch=len(x))
    if len(dense) == layout.n:
        return dense_gradients(x, pre, W_dec, layout)
    kept = _without(active, [layout.parts[index] for index in dense], batch=len(x))
    found = sparse_gradients(x, pre, kept, W_dec, layout)
    for first, stop in layout.runs(dense):
        rows, own = layout.part(first, stop)
        for whole, part in zip(found, dense_gradients(x, pre[rows], W_dec[rows], own), strict=True):
            whole[rows] = part
    return found


def _dense_ones(active: Int[Tensor, " entries"], layout: Layout, *, batch: int) -> list[int]:
    """The autoencoders with more active codes than sums over them are good for; all of them if no code is active."""
    stops = torch.tensor([rows.stop * batch for rows in layout.parts])
    counts = torch.searchsorted(active, stops).diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    sizes = [(rows.stop - rows.start) * batch for rows in layout.parts]
    dense = [index for index, (count, size) in enumerate(zip(counts, sizes, strict=True)) if count > DENSE_SHARE * size]
    return dense if len(active) else list(range(layout.n))


def _without(active: Int[Tensor, " entries"], parts: Sequence[slice], *, batch: int) -> Int[Tensor, " kept"]:
    """The entries outside these rows."""
    ends = [0, *(end * batch for rows in parts for end in (rows.start, rows.stop))]
    places = torch.searchsorted(active, torch.tensor(ends)).tolist()
    places = [*places, len(active)]
    return torch.cat([active[first:stop] for first, stop in zip(places[::2], places[1::2], strict=True)])


def dense_gradients(
    x: Float[Tensor, "batch d_model"],
    pre: Float[Tensor, "feature batch"],
    W_dec: Float[Tensor, "feature d_model"],
    layout: Layout,
) -> Gradients:
    """By products of whole matrices, those of one width together."""
    codes, unit = pre.relu_(), 2 / x.numel()
    by_decoder, by_pre = torch.empty_like(W_dec), torch.empty_like(pre)
    penalty = (layout.penalty / len(x))[:, None]
    for rows, n, width in layout.groups:
        c, decoder = codes[rows].view(n, width, -1), W_dec[rows].view(n, width, -1)
        error = torch.bmm(c.transpose(1, 2), decoder)  # (model, batch, d_model)
        error.sub_(x).mul_(unit)
        torch.bmm(c, error, out=by_decoder[rows].view(n, width, -1))
        own = penalty[rows].view(n, width, 1)
        torch.baddbmm(own, decoder, error.transpose(1, 2), out=by_pre[rows].view(n, width, -1))
    by_pre = torch.ops.aten.threshold_backward(by_pre, codes, 0)
    return Gradients(by_pre @ x, by_pre.sum(1), by_decoder)


def sparse_gradients(
    x: Float[Tensor, "batch d_model"],
    pre: Float[Tensor, "feature batch"],
    active: Int[Tensor, " entries"],
    W_dec: Float[Tensor, "feature d_model"],
    layout: Layout,
) -> Gradients:
    """By sums over active codes: ``active`` are their places in ``pre``, feature after feature."""
    n, unit = len(x), 2 / x.numel()
    places = active.numpy()
    features = places // n
    starts = np.concatenate([[0], np.cumsum(np.bincount(features, minlength=len(pre)))])
    examples, rows = places - features * n, places + (layout.owner.numpy() - np.arange(len(pre)))[features] * n
    codes = SparseCodes(pre.view(-1).index_select(0, active), torch.from_numpy(rows), torch.from_numpy(starts))
    error = reconstructed(codes, W_dec, n_rows=layout.n * n)
    error.view(layout.n, n, -1).sub_(x)
    error.mul_(unit)
    by_decoder = _sums(error, codes.values, codes.rows, codes.starts)
    by_codes = _products(W_dec, error, codes)
    by_codes += (layout.penalty / n).index_select(0, torch.from_numpy(features))
    by_bias = torch.segment_reduce(by_codes, "sum", offsets=codes.starts, unsafe=True)
    return Gradients(_sums(x, by_codes, torch.from_numpy(examples), codes.starts), by_bias, by_decoder)


class SparseCodes(NamedTuple):
    """Codes that are not zero, feature after feature; those of a feature begin at its start, the last start ends all.

    rows: of each, its place among the examples of all autoencoders, one autoencoder after the other.
    """

    values: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    starts: Int[Tensor, " features_and_one"]


def reconstructed(
    codes: SparseCodes, W_dec: Float[Tensor, "feature d_model"], *, n_rows: int
) -> Float[Tensor, "row d_model"]:
    """For each row the sum of its features' directions, each times its code."""
    shape = (len(W_dec), n_rows)
    by_feature = csr_matrix((codes.values.numpy(), codes.rows.numpy(), codes.starts.numpy()), shape=shape)
    # SciPy transposes by counting, several times as fast as the rows can be sorted.
    by_row = by_feature.tocsc()
    features, starts, values = map(torch.from_numpy, (by_row.indices, by_row.indptr[:-1], by_row.data))
    return F.embedding_bag(features, W_dec, starts, mode="sum", per_sample_weights=values)


def _sums(rows: Tensor, weights: Tensor, indices: Tensor, starts: Tensor) -> Tensor:
    """For each feature the weighted sum of the rows that its entries name."""
    return F.embedding_bag(indices, rows, starts[:-1], mode="sum", per_sample_weights=weights)


def _products(left: Tensor, right: Tensor, codes: SparseCodes) -> Tensor:
    """For each entry the product of its feature's direction with the row that it names."""
    zeros = torch.zeros(len(codes.rows))
    with warnings.catch_warnings():
        # PyTorch says once in each process that its CSR tensors are young.
        warnings.simplefilter("ignore")
        places = torch.sparse_csr_tensor(
            codes.starts, codes.rows, zeros, (len(left), len(right)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(places, left, right.T, beta=0.0).values()
