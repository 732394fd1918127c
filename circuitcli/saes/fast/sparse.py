"""Sparse codes as lists of entries, with gradients that cost what the codes hold.

Of ``batch * d_sae`` codes only a few are not zero, so after the encoder product everything is a sum over entries:
decoding sums decoder rows by token, and both weight gradients sum token rows by feature. On the CPU ``embedding_bag``
does either, on GPUs `saes.kernels` if Triton is there. Besides, ``x - b_dec`` sends the bias one gradient, the sum over
the batch, so the full gradient by x is never formed. The numbers are those of the dense definition, up to the order of
summation; other devices use that definition.
"""

import os
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcli.saes.fast.selection import Chosen, Selection


class Encoder(NamedTuple):
    """What makes pre-activations. Products are fastest if ``W_enc.T`` is contiguous; None subtracts no bias."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"] | None


class ByFeature(NamedTuple):
    """Entries of sparse codes in the order of their features: the transpose of the codes, without the values."""

    order: Int[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]
    starts: Int[Tensor, " d_sae"]


class Codes(NamedTuple):
    """``values`` of ``features``, token after token: those of a token begin at its start. All else is zero."""

    values: Float[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    starts: Int[Tensor, " batch"]
    tokens: Int[Tensor, " entries"]
    d_sae: int

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """As a matrix, with the gradient of the values."""
        codes = self.values.new_zeros(len(self.starts), self.d_sae)
        return codes.index_put((self.tokens, self.features), self.values)

    def positive(self) -> "Codes":
        """The same with the positive parts of the values."""
        return self._replace(values=self.values.relu())

    def active(self) -> Int[Tensor, " active"]:
        """The features of the values that are above zero."""
        return self.features[self.values.detach() > 0]

    def total(self, weights: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """The sum of all values, each times its feature's weight."""
        return (self.values * weights.index_select(0, self.features)).sum()

    def part(self, first: int, stop: int) -> "Codes":
        """The codes of features ``first`` to ``stop`` alone, counted from ``first``."""
        inside = (self.features >= first) & (self.features < stop)
        tokens = self.tokens[inside]
        starts = _starts(tokens, len(self.starts))
        return Codes(self.values[inside], self.features[inside] - first, starts, tokens, stop - first)


def encode(x: Float[Tensor, "batch d_in"], encoder: Encoder, selection: Selection) -> Codes:
    """Positive parts of the selected pre-activations; gradients reach the encoder, and x if it asks for one."""
    return pre_activations(x, encoder, selection).positive()


def pre_activations(x: Float[Tensor, "batch d_in"], encoder: Encoder, selection: Selection) -> Codes:
    """As `encode`, with the pre-activations as they are in place of their positive parts."""
    if _is_dense(x.device):
        return dense_pre_activations(x, encoder, selection)
    values, features, starts, tokens = _Encode.apply(x, *encoder, selection)
    return Codes(values, features, starts, tokens, encoder.b_enc.shape[0])


def dense_pre_activations(x: Float[Tensor, "batch d_in"], encoder: Encoder, selection: Selection) -> Codes:
    """The same by a dense product and plain autograd: the definition."""
    centred = x if encoder.b_dec is None else x - encoder.b_dec
    pre = centred @ encoder.W_enc + encoder.b_enc  # (batch, d_sae)
    tokens, features = selection.mask(pre.detach()).nonzero(as_tuple=True)
    values = pre[tokens, features]
    return Codes(values, features, _starts(tokens, x.shape[0]), tokens, pre.shape[1])


def decode(
    codes: Codes, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "batch d_out"]:
    """Sum of the decoder's rows, each times its code, and the bias if there is one."""
    if _is_dense(codes.values.device):
        decoded = codes.dense() @ W_dec
    elif _kernels(codes.values.device) is not None:
        decoded = _Decode.apply(codes.values, W_dec, codes.features, codes.starts, codes.tokens)
    else:
        decoded = F.embedding_bag(
            codes.features, W_dec.detach(), codes.starts, mode="sum", per_sample_weights=codes.values
        )
        decoded = _WithDecoderGradient.apply(decoded, W_dec, codes.values.detach(), codes.features, codes.tokens)
    return decoded if b_dec is None else decoded + b_dec


def _is_dense(device: torch.device) -> bool:
    """Whether the dense definition is all there is for a device."""
    return device.type != "cpu" and _kernels(device) is None


def _kernels(device: torch.device) -> ModuleType | None:
    """The kernels for this device, if there are some; for the CPU in Triton's interpreter only, for tests."""
    is_interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _compiled() if device.type == "cuda" or is_interpreted else None


@cache
def _compiled() -> ModuleType | None:
    try:
        from circuitcli.saes.fast import kernels
    except ImportError:
        return None
    return kernels


def _starts(sorted_numbers: Int[Tensor, " entries"], n: int) -> Int[Tensor, " n"]:
    """Where each of the numbers 0 to n begins."""
    return torch.searchsorted(sorted_numbers, torch.arange(n, device=sorted_numbers.device))


def by_feature(features: Int[Tensor, " entries"], tokens: Int[Tensor, " entries"], *, d_sae: int) -> ByFeature:
    """Sort the entries by feature, those of one feature by token."""
    if features.device.type != "cpu":
        in_order, places = features.sort(stable=True)
        return ByFeature(places, tokens.index_select(0, places), _starts(in_order, d_sae))
    numbers = features.numpy()
    # NumPy sorts 16-bit integers by radix, hundreds of times as fast as torch.sort sorts 64-bit ones.
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    if d_sae > 2**16:
        high = (numbers >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    counts = np.bincount(numbers, minlength=d_sae)
    starts = np.cumsum(counts) - counts
    places = torch.from_numpy(order)
    return ByFeature(places, tokens.index_select(0, places), torch.from_numpy(starts))


def segment_sums(
    rows: Float[Tensor, "row d"],
    weights: Float[Tensor, " entries"],
    indices: Int[Tensor, " entries"],
    starts: Int[Tensor, " segments"],
) -> Float[Tensor, "segments d"]:
    """For each segment of entries the sum of ``weights * rows[indices]``; a segment ends where the next one starts."""
    if (kernels := _kernels(rows.device)) is not None:
        return kernels.segment_sums(rows, weights, indices, starts)
    return F.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=weights)


def sums_by_feature(
    rows: Float[Tensor, "batch d"], values: Float[Tensor, " entries"], entries: ByFeature
) -> Float[Tensor, "d_sae d"]:
    """For each feature the sum of the tokens' rows, each times the feature's value there: ``codes.T @ rows``."""
    return segment_sums(rows, values.index_select(0, entries.order), entries.tokens, entries.starts)


class _Encode(torch.autograd.Function):
    """(x, W_enc, b_enc, b_dec) -> the selected pre-activations, and where they are."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        selection: Selection,
    ) -> tuple[Tensor, ...]:
        centred = x if b_dec is None else x - b_dec
        chosen: Chosen = selection.choose(centred, W_enc, b_enc)
        starts = _starts(chosen.tokens, x.shape[0])
        ctx.save_for_backward(centred, W_enc, chosen.features, starts, chosen.tokens)
        ctx.subtracts = b_dec is not None
        ctx.mark_non_differentiable(chosen.features, starts, chosen.tokens)
        return chosen.values, chosen.features, starts, chosen.tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_pre: Tensor, *_: Any) -> tuple[Any, ...]:
        centred, W_enc, features, starts, tokens = ctx.saved_tensors
        entries = by_feature(features, tokens, d_sae=W_enc.shape[1])
        encoder = sums_by_feature(centred, by_pre, entries)  # (d_sae, d_in)
        bias = sums_by_feature(torch.ones_like(centred[:, :1]), by_pre, entries)[:, 0]
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = segment_sums(W_enc.T.contiguous(), by_pre, features, starts)
        return by_x, encoder.T, bias, -(W_enc @ bias) if ctx.subtracts else None, None


class _WithDecoderGradient(torch.autograd.Function):
    """What was decoded, unchanged; backward, W_dec gets its gradient by a sum over the entries of each feature."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, W_dec: Tensor, values: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(values, features, tokens)
        ctx.d_sae = W_dec.shape[0]
        return decoded.view_as(decoded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_decoded: Tensor) -> tuple[Any, ...]:
        values, features, tokens = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return by_decoded, None, None, None, None
        entries = by_feature(features, tokens, d_sae=ctx.d_sae)
        return by_decoded, sums_by_feature(by_decoded.contiguous(), values, entries), None, None, None


class _Decode(torch.autograd.Function):
    """(values, W_dec) -> sums of the decoder's rows, by the kernels of a GPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, features: Tensor, starts: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(values, W_dec, features, tokens)
        return segment_sums(W_dec, values, features, starts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_decoded: Tensor) -> tuple[Any, ...]:
        values, W_dec, features, tokens = ctx.saved_tensors
        kernels = _kernels(by_decoded.device)
        assert kernels is not None
        by_values = kernels.products(by_decoded, tokens, W_dec, features)
        entries = by_feature(features, tokens, d_sae=W_dec.shape[0])
        return by_values, sums_by_feature(by_decoded, values, entries), None, None, None
