"""The training loss: the share of variance that is missed, and AuxK, which revives dead features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.training.ranks import ALONE, Ranks


def missed_variance(
    x: Float[Tensor, "batch d_in"], reconstruction: Float[Tensor, "batch d_in"], *, variance: float
) -> Float[Tensor, ""]:
    """Mean squared norm of the error over the variance of the data (the expected squared distance from its mean)."""
    return F.mse_loss(reconstruction, x, reduction="sum") / (x.shape[0] * variance)


def auxk(
    error: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch n_dead"],
    decoder: Float[Tensor, "n_dead d_in"],
    *,
    k: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Share of the reconstruction error's variance that the k strongest dead features of each token miss.

    error: x minus its reconstruction, a constant here. pre: pre-activations of the dead features, through which the
    gradient reaches their encoder rows. The decoder bias takes no part. An error without variance costs nothing.
    ranks: the processes over whose batches the variance is taken.
    Source: Gao et al. 2024, arXiv:2406.04093, section 2.4 and appendix A.2.
    """
    error = error.detach()
    codes = pre.relu()
    if k < codes.shape[1]:
        values, indices = codes.topk(k, dim=1, sorted=False)
        codes = torch.zeros_like(codes).scatter(1, indices, values)
    missed = (codes @ decoder - error).square().sum()
    mean = ranks.sum(error.mean(dim=0)) / ranks.n
    spread = ranks.sum((error - mean).square().sum()) / ranks.n
    return missed / spread if spread > 0 else missed * 0.0
