"""How much the codes of one SAE change with those of another, through what lies between, in closed form.

The Jacobian is taken where the model is: at the activation itself, what the first SAE misses being part of it. There
only the active features of both SAEs have a derivative, and what lies between is linear but for norms, whose derivative
is that of a diagonal with a rank-one correction. So with products of weights made once a batch, each token costs
k * k * d_mlp. (Farnik et al. 2025, arXiv:2502.18147; with LayerNorm and skip: SCALAR, arXiv:2511.07572.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcli.models.mlp import Mlp
from circuitcli.models.projections import Norm, Normed

# Tokens whose Jacobians are in memory at once.
PIECE_TOKENS = 256


@dataclass(frozen=True)
class Active:
    """For each token k features, and which of them are active."""

    features: Int[Tensor, "batch k"]
    is_active: Bool[Tensor, "batch k"]

    def part(self, rows: slice) -> "Active":
        """Those of some tokens."""
        return Active(self.features[rows], self.is_active[rows])


class Weights(NamedTuple):
    """What the features of both SAEs are to what lies between them; the gradient goes to these.

    reads: decoder rows of the first SAE; writes: encoder columns of the second; inward: reads through each branch of
    the MLP, behind the gain of a norm; outward: writes back through its output, before the gain of a norm.
    """

    reads: Float[Tensor, "d_sae_in d_model"]
    writes: Float[Tensor, "d_sae_out d_model"]
    outward: Float[Tensor, "d_sae_out d_mlp"]
    inward: Float[Tensor, "branch d_sae_in d_mlp"]


def jacobian_size(
    x: Float[Tensor, "batch d_model"],
    mlp: Mlp,
    *,
    reads: Float[Tensor, "d_sae_in d_model"],
    writes: Float[Tensor, "d_sae_out d_model"],
    active_in: Active,
    active_out: Active,
) -> Float[Tensor, ""]:
    """Mean over tokens of 1/k^2 times the sum of the sizes of all derivatives of active codes by active codes.

    reads: decoder rows of the SAE at x; writes: encoder columns of the SAE at ``mlp(x)``; both take gradients. Papers
    take the sum over tokens in place of the mean: their weight times the tokens of their batch is ours.
    """
    before = reads if mlp.before is None else reads * mlp.before.gain
    after = writes if mlp.after is None else writes * mlp.after.gain
    inward = torch.stack([before @ branch.weight.T for branch in mlp.branches])
    weights = Weights(reads, writes, after @ mlp.down.weight, inward)
    return _Size.apply(x, mlp, active_in, active_out, *weights) / (len(x) * active_in.features.shape[1] ** 2)


def jacobians(
    x: Float[Tensor, "batch d_model"], mlp: Mlp, weights: Weights, features_in: Tensor, features_out: Tensor
) -> Float[Tensor, "batch k_in k_out"]:
    """Derivatives of features of the second SAE (last axis) by features of the first, for each token."""
    normed = None if mlp.before is None else mlp.before.normed(x)
    n = x if mlp.before is None else mlp.before(x)
    left = torch.zeros((), dtype=x.dtype, device=x.device)
    reads = F.embedding(features_in, weights.reads)  # (batch, k_in, d_model)
    for branch, inward, slope in zip(mlp.branches, weights.inward, mlp.slopes(n), strict=True):
        rows = F.embedding(features_in, inward)  # (batch, k_in, d_mlp)
        if mlp.before is not None and normed is not None:
            rows = _through_norm(rows, reads, mlp.before, normed, branch.weight.T * mlp.before.gain[:, None])
        left = left + rows * slope[:, None]
    right = F.embedding(features_out, weights.outward)  # (batch, k_out, d_mlp)
    writes = F.embedding(features_out, weights.writes)
    if mlp.after is not None:
        right = _through_norm(
            right, writes * mlp.after.gain, mlp.after, mlp.after.normed(mlp.inner(n)), mlp.down.weight
        )
    derivatives = left @ right.mT
    return derivatives + reads @ writes.mT if mlp.skips else derivatives


def _through_norm(
    rows: Float[Tensor, "batch k d_mlp"],
    directions: Float[Tensor, "batch k d_model"],
    norm: Norm,
    normed: Normed,
    matrix: Float[Tensor, "d_model d_mlp"],
) -> Float[Tensor, "batch k d_mlp"]:
    """Directions through the derivative of a norm and a matrix, from ``rows``, those through the matrix alone.

    The derivative is ``scale * (1 - 1 1^T / d - normed normed^T / d)``, the second term where the norm centres.
    """
    d_model = directions.shape[2]
    along = directions @ normed.x[:, :, None] / d_model  # (batch, k, 1)
    rows = rows - along * (normed.x @ matrix)[:, None]
    if norm.centres:
        rows = rows - directions.mean(dim=2, keepdim=True) * matrix.sum(dim=0)
    return rows * normed.scale[:, :, None]


class _Size(torch.autograd.Function):
    """Sum of absolute values over tokens; the gradient is taken at once, piece by piece, or memory would be short."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: Mlp, active_in: Active, active_out: Active, *weights: Tensor) -> Tensor:
        total = x.new_zeros(())
        gradients = [torch.zeros_like(weight) for weight in weights]
        for start in range(0, len(x), PIECE_TOKENS):
            rows = slice(start, start + PIECE_TOKENS)
            with torch.enable_grad():
                leaves = Weights(*(weight.detach().requires_grad_() for weight in weights))
                size = _size(x[rows], mlp, leaves, active_in.part(rows), active_out.part(rows))
            total += size.detach()
            _add(gradients, torch.autograd.grad(size, leaves, allow_unused=True))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, None, None, None, *(upstream * gradient for gradient in ctx.saved_tensors)


def _size(x: Tensor, mlp: Mlp, weights: Weights, active_in: Active, active_out: Active) -> Float[Tensor, ""]:
    derivatives = jacobians(x, mlp, weights, active_in.features, active_out.features)
    both = active_in.is_active[:, :, None] & active_out.is_active[:, None, :]
    return (derivatives.abs() * both).sum()


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor | None]) -> None:
    for total, part in zip(totals, parts, strict=True):
        if part is not None:
            total += part
