"""Decoder rows that keep their length while they turn: on the unit sphere, or as long as a coder had them before."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Rows that differ from length one by no more are of length one, but for rounding.
ROUNDING = 1e-4
_TINY = 1e-12


def lengths_to_keep(decoder: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"] | None:
    """How long the rows are; None where all have length one. One that is no direction gets length one in time."""
    lengths = torch.linalg.vector_norm(decoder, dim=1)
    lengths = torch.where(lengths > _TINY, lengths, 1.0)
    return None if bool(((lengths - 1).abs() <= ROUNDING).all()) else lengths


@torch.no_grad()
def along_rows_removed(decoder: nn.Parameter, lengths: Float[Tensor, " d_sae"] | None = None) -> None:
    """Take off the gradient's part along the rows, which cannot be followed if they keep length one, or these."""
    if decoder.grad is not None:
        along = torch.linalg.vecdot(decoder.grad, decoder)
        along = along if lengths is None else along / lengths.square()
        decoder.grad.addcmul_(along[:, None], decoder, value=-1.0)


@torch.no_grad()
def rows_made_unit(decoder: nn.Parameter, lengths: Float[Tensor, " d_sae"] | None = None) -> None:
    """Put the rows back on the unit sphere, or give them these lengths."""
    norms = torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min(_TINY)
    decoder.div_(norms if lengths is None else norms / lengths[:, None])
