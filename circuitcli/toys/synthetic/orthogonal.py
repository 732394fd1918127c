"""Directions that are nearly at right angles, more of them than there are dimensions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def spread_out(rows: Float[Tensor, "row d"], *, steps: int, rate: float) -> Float[Tensor, "row d"]:
    """The rows after so many steps of Adam on the sum of squared products of all pairs, and of length one again.

    Lengths are held by ``n`` times the sum of ``(|row|^2 - 1)^2``, as in SynthSAEBench (arXiv:2602.14687). The products
    of all pairs are never made: the gradient ``4 (R (R^T R) - |r|^2 r)`` needs the products of all dimensions alone.
    """
    rows = F.normalize(rows, dim=1)
    optimised = rows.clone().requires_grad_()
    optimizer = torch.optim.Adam([optimised], lr=rate, foreach=False)
    for _ in range(steps):
        optimised.grad = gradient(optimised)
        optimizer.step()
    return F.normalize(optimised.detach(), dim=1)


def gradient(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Of what `spread_out` makes small."""
    squares = rows.square().sum(dim=1, keepdim=True)
    return 4 * (rows @ (rows.T @ rows) - squares * rows) + 4 * len(rows) * (squares - 1) * rows
