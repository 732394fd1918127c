"""What the activations that a coder writes change by when its codes go to a baseline.

Few codes of a token are not zero, so rows of the decoder are added up for these alone.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import Frame, SparseCoder

# Beyond this share of numbers that are not zero a whole product is faster.
_DENSE = 1 / 16
# Where sums of rows by index are as fast as they should be.
_DEVICES = ("cpu", "cuda")


def change_to(
    coder: SparseCoder,
    codes: Float[Tensor, "text position d_sae"],
    absent: Float[Tensor, "_ _ d_sae"],
    frame: Frame | None,
    *,
    hook: HookPoint,
) -> Float[Tensor, "text position d_out"]:
    """``coder.change(codes - absent, frame, hook=hook)``, what is taken off where codes go to what they are absent."""
    decoder = coder.decoder(hook)
    if len(absent.flatten(0, 1)) == 1:
        # A mean has few zeros, but is one row.
        change = (
            summed_rows(codes, decoder) - summed_rows(absent, decoder) if absent.any() else summed_rows(codes, decoder)
        )
    else:
        change = summed_rows(codes - absent, decoder)
    return change if frame is None else change * frame.scale


def summed_rows(
    weights: Float[Tensor, "*batch d_sae"], rows: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "*batch d_out"]:
    """``weights @ rows``, from the weights that are not zero where those are few."""
    flat = weights.flatten(0, -2)
    chosen = flat != 0
    counts = chosen.sum(dim=1)
    if int(counts.sum()) > _DENSE * flat.numel() or flat.device.type not in _DEVICES:
        return weights @ rows
    starts = counts.cumsum(dim=0) - counts
    indices = chosen.nonzero()[:, 1]
    found = functional.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=flat[chosen])
    return found.unflatten(0, weights.shape[:-1])
