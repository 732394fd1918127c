"""Orthogonal and independent components, and the dimensions themselves: of each row the k largest codes stay."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SaeConfig

# Directions whose variance is less than this, of the largest, have no independent components.
LEAST_VARIANCE = 1e-6
# FastICA ends when no direction turns by more than this in a step, 1 - |cosine|, or after so many.
_TURN, _MOST_TURNS = 1e-4, 100


def moments(pieces: Iterable[Float[Tensor, "_ d"]]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and covariance of rows that come in pieces, float64; no more than a piece is in memory.

    Raises ValueError without rows.
    """
    n, total, products, origin = 0, None, None, None
    for piece in pieces:
        x = piece.to("cpu", torch.float64)
        origin = x.mean(dim=0) if origin is None else origin
        x = x - origin
        here, of_here = x.sum(dim=0), x.T @ x
        n, total = n + len(x), here if total is None else total + here
        products = of_here if products is None else products + of_here
    if total is None or products is None or origin is None:
        raise ValueError("no rows have no moments")
    mean = total / n
    return mean + origin, products / n - mean[:, None] * mean


def linear_coder(
    hook: HookPoint,
    encoder: Float[Tensor, "feature d"],
    decoder: Float[Tensor, "feature d"],
    mean: Float[Tensor, " d"],
    *,
    k: int,
) -> AbsTopKSae:
    """The coder of these rows about a mean, whose k codes furthest from zero stay, with their sign.

    Decoder rows are made unit, so that a code says how far its feature carries.
    """
    lengths = decoder.norm(dim=1, keepdim=True)
    n, d = decoder.shape
    coder = AbsTopKSae(SaeConfig(hook, d, n), k=min(k, n))
    coder.W_dec.data = (decoder / lengths).float().contiguous()
    coder.W_enc.data = (encoder * lengths).T.float().contiguous()
    coder.b_dec.data = mean.float()
    return coder.eval().requires_grad_(False)


def pca(
    hook: HookPoint, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], *, k: int, n: int | None = None
) -> AbsTopKSae:
    """The ``n`` directions of most variance, all unless given."""
    vectors = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:n]
    return linear_coder(hook, vectors, vectors, mean, k=k)


def identity(hook: HookPoint, mean: Float[Tensor, " d"], *, k: int) -> AbsTopKSae:
    """The dimensions of the activation as features, about its mean."""
    basis = torch.eye(len(mean), dtype=torch.float64)
    return linear_coder(hook, basis, basis, mean, k=k)


def ica(
    hook: HookPoint,
    rows: Float[Tensor, "row d"],
    *,
    k: int,
    generator: torch.Generator,
) -> AbsTopKSae:
    """Directions along which the rows are least normal, as many as vary.

    FastICA (Hyvärinen 1999, doi:10.1109/72.761722), all at once, with tanh. It stops where it no longer turns, or after
    100 steps.
    """
    mean, covariance = moments([rows])
    values, vectors = torch.linalg.eigh(covariance)
    is_kept = values > LEAST_VARIANCE * values[-1]
    scale, vectors = values[is_kept].sqrt(), vectors[:, is_kept]
    whitened = (rows.double() - mean) @ (vectors / scale)  # (row, component)
    rotation = unmixing(whitened.float(), generator=generator).double()
    return linear_coder(hook, rotation @ (vectors / scale).T, rotation @ (vectors * scale).T, mean, k=k)


def unmixing(x: Float[Tensor, "row n"], *, generator: torch.Generator) -> Float[Tensor, "n n"]:
    """The rotation of whitened rows whose outputs are least normal; a row of it is a direction."""
    rotation = _orthogonal(torch.randn(x.shape[1], x.shape[1], generator=generator))
    for _ in range(_MOST_TURNS):
        bent = (x @ rotation.T).tanh_()
        slopes = 1 - bent.square().mean(dim=0)
        turned = _orthogonal(bent.T @ x / len(x) - slopes[:, None] * rotation)
        turn = float((1 - torch.linalg.vecdot(turned, rotation).abs()).max())
        rotation = turned
        if turn < _TURN:
            break
    return rotation


def _orthogonal(rows: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The nearest rotation: (R R^T)^(-1/2) R."""
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left @ right
