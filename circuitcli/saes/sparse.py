"""The TopK autoencoder on the (value, index) form of its codes, with gradients that cost what the codes hold.

Of ``d_sae`` codes only ``k`` are not zero, so after the encoder product everything is a sum over ``batch * k`` entries:
decoding sums decoder rows by token, and both weight gradients sum token rows by feature. ``embedding_bag`` does either.
Besides, ``x - b_dec`` sends the bias one gradient, the sum over the batch, so the full gradient by x is never formed.
The numbers are those of `dense_autoencode`, up to the order of summation. Devices other than the CPU, which multiply
dense matrices faster than they gather, use the dense form.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pre-activations are made and searched for so many tokens at once, which bounds memory and costs no time.
PIECE_ROWS = 1024


class Autoencoder(NamedTuple):
    """The four tensors of an autoencoder. Products are fastest if ``W_enc.T`` is contiguous."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]


class Autoencoded(NamedTuple):
    """What came out of a TopK autoencoder: the codes are ``values`` at ``indices`` and zero elsewhere."""

    reconstruction: Float[Tensor, "batch d_in"]
    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    watched: Float[Tensor, "batch n_watched"]


class ByFeature(NamedTuple):
    """Entries of sparse codes in the order of their features: the transpose of the codes, without the values."""

    order: Int[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]
    starts: Int[Tensor, " d_sae"]


def autoencode(
    x: Float[Tensor, "batch d_in"],
    weights: Autoencoder,
    *,
    k: int,
    watched: Int[Tensor, " n_watched"] | None = None,
) -> Autoencoded:
    """Reconstruction and codes; gradients reach the weights, and x if it asks for one.

    watched: features, none twice, whose pre-activations are returned, with gradients, whether among the k or not.
    """
    if watched is None:
        watched = torch.empty(0, dtype=torch.int64, device=x.device)
    if x.device.type != "cpu":
        return dense_autoencode(x, weights, k=k, watched=watched)
    values, indices, pre, order, tokens, starts = _Encode.apply(
        x, weights.W_enc, weights.b_enc, weights.b_dec, watched, k
    )
    entries = ByFeature(order, tokens, starts)
    decoded = F.embedding_bag(indices, weights.W_dec.detach(), mode="sum", per_sample_weights=values)
    decoded = _WithDecoderGradient.apply(decoded, weights.W_dec, values.detach(), entries)
    return Autoencoded(decoded + weights.b_dec, values, indices, pre)


def dense_autoencode(
    x: Float[Tensor, "batch d_in"], weights: Autoencoder, *, k: int, watched: Int[Tensor, " n_watched"]
) -> Autoencoded:
    """The same by dense products and plain autograd: the definition."""
    pre = (x - weights.b_dec) @ weights.W_enc + weights.b_enc  # (batch, d_sae)
    values, indices = pre.topk(k, dim=-1, sorted=False)
    values = values.relu()
    codes = torch.zeros_like(pre).scatter(-1, indices, values)
    reconstruction = codes @ weights.W_dec + weights.b_dec
    return Autoencoded(reconstruction, values, indices, pre[:, watched])


def by_feature(indices: Int[Tensor, "batch k"], *, d_sae: int) -> ByFeature:
    """Sort the entries by feature, those of one feature by token. On the CPU."""
    features = indices.reshape(-1).numpy()
    # NumPy sorts 16-bit integers by radix, hundreds of times as fast as torch.sort sorts 64-bit ones.
    order = np.argsort(features.astype(np.uint16), kind="stable")
    if d_sae > 2**16:
        high = (features >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    counts = np.bincount(features, minlength=d_sae)
    starts = np.cumsum(counts) - counts
    return ByFeature(torch.from_numpy(order), torch.from_numpy(order // indices.shape[1]), torch.from_numpy(starts))


def sums_by_feature(
    rows: Float[Tensor, "batch d"], values: Float[Tensor, "batch k"], entries: ByFeature
) -> Float[Tensor, "d_sae d"]:
    """For each feature the sum of the tokens' rows, each times the feature's value there: ``codes.T @ rows``."""
    weights = values.reshape(-1)[entries.order]
    return F.embedding_bag(entries.tokens, rows, entries.starts, mode="sum", per_sample_weights=weights)


def _largest(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    k: int,
    watched: Int[Tensor, " n_watched"],
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"], Float[Tensor, "batch n_watched"]]:
    """Positive parts and indices of the k largest pre-activations, and the watched ones; in pieces of the batch."""
    (batch, _), d_sae = centred.shape, b_enc.shape[0]
    values = centred.new_empty(batch, k)
    indices = torch.empty(batch, k, dtype=torch.int64)
    watched_pre = centred.new_empty(batch, watched.shape[0])
    piece = centred.new_empty(min(PIECE_ROWS, batch), d_sae)
    for start in range(0, batch, PIECE_ROWS):
        here = slice(start, min(start + PIECE_ROWS, batch))
        pre = torch.addmm(b_enc, centred[here], W_enc, out=piece[: here.stop - start])  # (rows, d_sae)
        torch.topk(pre, k, dim=1, sorted=False, out=(values[here], indices[here]))
        if watched.numel():
            watched_pre[here] = pre[:, watched]
    return values.relu_(), indices, watched_pre


class _Encode(torch.autograd.Function):
    """(x, W_enc, b_enc, b_dec) -> positive parts of the k largest pre-activations, their indices, watched ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, watched: Tensor, k: int
    ) -> tuple[Tensor, ...]:
        centred = x - b_dec
        values, indices, watched_pre = _largest(centred, W_enc, b_enc, k=k, watched=watched)
        entries = by_feature(indices, d_sae=b_enc.shape[0])
        ctx.save_for_backward(centred, W_enc, values, indices, watched, *entries)
        ctx.mark_non_differentiable(indices, *entries)
        return values, indices, watched_pre, *entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_values: Tensor, _: Any, by_watched: Tensor, *__: Any) -> tuple[Any, ...]:
        centred, W_enc, values, indices, watched, *rest = ctx.saved_tensors
        entries = ByFeature(*rest)
        by_pre = by_values * (values > 0)  # (batch, k)
        encoder = sums_by_feature(centred, by_pre, entries)  # (d_sae, d_in)
        bias = sums_by_feature(torch.ones_like(centred[:, :1]), by_pre, entries)[:, 0]
        if watched.numel():
            encoder[watched] += by_watched.T @ centred
            bias[watched] += by_watched.sum(dim=0)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = F.embedding_bag(indices, W_enc.T.contiguous(), mode="sum", per_sample_weights=by_pre)
            by_x = by_x + by_watched @ W_enc[:, watched].T
        return by_x, encoder.T, bias, -(W_enc @ bias), None, None


class _WithDecoderGradient(torch.autograd.Function):
    """What was decoded, unchanged; backward, W_dec gets its gradient by a sum over the entries of each feature."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, W_dec: Tensor, values: Tensor, entries: ByFeature) -> Tensor:
        ctx.save_for_backward(values, *entries)
        return decoded.view_as(decoded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_decoded: Tensor) -> tuple[Any, ...]:
        values, *rest = ctx.saved_tensors
        return by_decoded, sums_by_feature(by_decoded.contiguous(), values, ByFeature(*rest)), None, None
