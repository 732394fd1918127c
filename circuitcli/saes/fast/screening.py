"""The largest pre-activations, of each token or of all, found by a product in bfloat16 and taken in float32.

Processors with units for bfloat16 multiply in it several times as fast as in float32. How far such a product can be off
is known, so it tells which pre-activations may be among the largest; these few alone are then made in float32, and the
largest of them are the largest there are. Nothing is lost: what is chosen are the largest of the float32 product, up to
the order in which its sums are taken.
"""

import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Largest relative error of rounding to bfloat16, with its 8 significant bits, and of one step of a sum in float32.
_BFLOAT16, _FLOAT32 = 2.0**-8, 2.0**-24
# Squares of smaller numbers are below what float32 holds with all its digits.
_FAINT = 2.0**-63
# The product is rounded, the bias too, and both once more where they are added.
_ROUNDED = 2.5 * _BFLOAT16
# Features are first compared in so many times k groups; smaller groups than this cost more than they spare.
_GROUPS, _LEAST_IN_GROUP = 4, 8
# A token with more candidates than so many times k is multiplied in float32 altogether.
_MOST = 8


@cache
def has_bfloat16_units() -> bool:
    """Whether this processor multiplies matrices in bfloat16 several times as fast as in float32."""
    # Older versions of torch cannot tell.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16", False))


def pays(device: torch.device, *, d_sae: int, k: int) -> bool:
    """Whether `Screen` is the fastest way to the k largest of so many pre-activations in float32."""
    return device.type == "cpu" and d_sae >= _GROUPS * _LEAST_IN_GROUP * k and has_bfloat16_units()


class Entries(NamedTuple):
    """Some pre-activations in float32, token after token."""

    values: Float[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]


class Screen:
    """Tokens and an encoder in bfloat16, and how far their product can be off.

    Methods take a part of the product, of the tokens ``start`` and following.
    """

    def __init__(
        self,
        centred: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> None:
        self._centred, self._W_enc, self._b_enc = centred, W_enc, b_enc
        self.rows, self.weights, self.bias = centred.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16()
        self._slack = self._largest_error()

    @property
    def is_finite(self) -> bool:
        """Whether no token, weight or bias is NaN or infinite."""
        return bool(self._slack.isfinite().all())

    def _largest_error(self) -> Float[Tensor, " batch"]:
        """Bounds of the errors of the pre-activations of each token, but for the share that `_ROUNDED` tells.

        By the inequality of Cauchy and Schwarz: ``rows @ weights - centred @ W_enc`` is
        ``(rows - centred) @ weights + centred @ (weights - W_enc)``.
        """
        d_in = self._centred.shape[1]
        # Squares of smaller numbers vanish in a norm, and products of such numbers in the processor.
        faint = d_in**0.5 * _FAINT
        rounding = torch.linalg.vector_norm(self.weights - self._W_enc, dim=0).max() + faint
        length = torch.linalg.vector_norm(self._W_enc, dim=0).max() + rounding
        row_rounding = torch.linalg.vector_norm(self.rows - self._centred, dim=1) + faint
        row_length = torch.linalg.vector_norm(self._centred, dim=1) + row_rounding
        summing = d_in * _FLOAT32
        product = row_rounding * length + row_length * (rounding + summing * length)
        # These norms are rounded themselves.
        return product * (1 + 1e-3) + _ROUNDED * self._b_enc.abs().max()

    def largest(
        self, start: int, pre: Float[Tensor, "rows d_sae"], k: int
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """The k largest float32 pre-activations of each token, and their features, in any order.

        Tokens for which the product does not tell are multiplied in float32: where numbers are not finite, or many are
        close together.
        """
        # The k largest of the groups' maxima are k pre-activations, so the k-th largest of all is none below these.
        least = maxima(pre, k).topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        mask = self._reaches(start, pre, self.at_least(start, least))
        if np.count_nonzero(mask.numpy()) > _MOST * len(pre) * k:
            # So many places would take much memory.
            mask[mask.sum(dim=1) > _MOST * k] = False
        flat, starts = _by_row(mask)
        counts = starts.diff()
        crowded = ((counts < k) | (counts > _MOST * k)).nonzero()[:, 0]
        if len(crowded):
            mask[crowded] = False
            flat, starts = _by_row(mask)
        entries = self._entries(start, flat, starts)
        values, features = _padded_largest(entries._replace(tokens=entries.tokens - start), starts, k)
        if len(crowded):
            whole = torch.addmm(self._b_enc, self._centred[start + crowded], self._W_enc)
            values[crowded], features[crowded] = whole.topk(k, dim=1, sorted=False)
        return values, features

    def above(self, start: int, pre: Float[Tensor, "rows d_sae"], least: float, *, most: int) -> Entries | None:
        """All float32 pre-activations that are no smaller than ``least``, and some that are.

        None if they may be more than ``most``.
        """
        mask = self._reaches(start, pre, pre.new_full((len(pre), 1), least, dtype=torch.float32))
        if np.count_nonzero(mask.numpy()) > most:
            return None
        return self._entries(start, *_by_row(mask))

    def at_least(self, start: int, pre: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """How large pre-activations are in float32 at least, of which these are the product in bfloat16.

        It rises with the product. NaN where weights or tokens are not finite.
        """
        pre = pre.float()
        return pre - self._slack[start : start + len(pre), None] - _ROUNDED * pre.abs()

    def _reaches(
        self, start: int, pre: Float[Tensor, "rows d_sae"], least: Float[Tensor, "rows 1"]
    ) -> Bool[Tensor, "rows d_sae"]:
        """Where a float32 pre-activation may be as large as a token's ``least``."""
        error = self._slack[start : start + len(pre), None] + _ROUNDED * least.abs()
        # A little more, for the errors of numbers somewhat smaller than the least.
        return not_below(pre, (least - (1 + 2 * _ROUNDED) * error)[:, 0])

    def _entries(self, start: int, flat: Int[Tensor, " entries"], starts: Int[Tensor, " edges"]) -> Entries:
        """The float32 pre-activations at these places, counted from the first token on."""
        tokens = torch.repeat_interleave(starts.diff(), output_size=len(flat))
        features = flat - tokens * len(self._b_enc)
        rows = self._centred[start : start + len(starts) - 1]
        values = _products(rows, self._W_enc, starts, features).add_(self._b_enc.index_select(0, features))
        return Entries(values, features, tokens + start)


def maxima(pre: Float[Tensor, "rows d_sae"], k: int) -> Float[Tensor, "rows groups"]:
    """The largest of each of some groups of a token's pre-activations; there are more groups than k."""
    n_groups = _GROUPS * k
    in_group = pre.shape[1] // n_groups
    return pre[:, : n_groups * in_group].unflatten(1, (in_group, n_groups)).amax(dim=1)


def _padded_largest(
    entries: Entries, starts: Int[Tensor, " edges"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each token's entries, which begin at its start: none, or k or more."""
    values, features, tokens = entries
    # Tokens with fewer than others are filled up to one length.
    n_rows, longest = len(starts) - 1, max(k, int(starts.diff().max()))
    at = torch.arange(len(values)) + tokens * longest - starts.index_select(0, tokens)
    padded = values.new_full((n_rows * longest,), -torch.inf).index_copy_(0, at, values).view(-1, longest)
    names = features.new_zeros(n_rows * longest).index_copy_(0, at, features).view(-1, longest)
    found, inside = padded.topk(k, dim=1, sorted=False)
    return found, names.gather(1, inside)


def not_below(pre: Float[Tensor, "rows d_sae"], floor: Float[Tensor, " rows"]) -> Bool[Tensor, "rows d_sae"]:
    """Where pre-activations of type bfloat16 are no smaller than a token's floor, rounded down."""
    rounded = floor.bfloat16()
    lower = torch.where(rounded > floor, torch.nextafter(rounded, torch.full_like(rounded, -torch.inf)), rounded)
    if bool((lower > 0).all()):
        # Positive numbers have the order of their bits, read as integers, and negative ones are below them; integers
        # are compared twice as fast.
        return pre.view(torch.int16) >= lower.view(torch.int16)[:, None]
    return pre >= lower[:, None]


def flat_places(mask: Bool[Tensor, "rows columns"]) -> Int[Tensor, " entries"]:
    """Where it is true, counted row after row."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    # NumPy passes over what is false ten times as fast as torch does.
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _by_row(mask: Bool[Tensor, "rows columns"]) -> tuple[Int[Tensor, " entries"], Int[Tensor, " edges"]]:
    """Its `flat_places`, and where those of each row begin, and the last end, among them."""
    flat = flat_places(mask)
    return flat, torch.searchsorted(flat, torch.arange(len(mask) + 1) * mask.shape[1])


def _products(
    rows: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    starts: Int[Tensor, " edges"],
    features: Int[Tensor, " entries"],
) -> Float[Tensor, " entries"]:
    """``rows @ W_enc`` at some entries: those of each row at its features."""
    blank, size = rows.new_zeros(len(features)), (len(rows), W_enc.shape[1])
    with warnings.catch_warnings():
        # Of torch, about what its sparse tensors cannot do yet.
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(starts, features, blank, size=size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, rows, W_enc, beta=0.0).values()
