"""The training loss: the share of variance that is missed."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def missed_variance(
    x: Float[Tensor, "batch d_in"], reconstruction: Float[Tensor, "batch d_in"], *, variance: float
) -> Float[Tensor, ""]:
    """Mean squared norm of the error over the variance of the data (the expected squared distance from its mean)."""
    return F.mse_loss(reconstruction, x, reduction="sum") / (x.shape[0] * variance)
