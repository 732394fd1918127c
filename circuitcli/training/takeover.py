"""Finished coders as training begins from them: for scaled activations again, their parameters laid out to learn."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.training.initial import folded

# Thresholds that one rounding of one number gives.
_SAME = 1e-5


@torch.no_grad()
def unfolded(coder: SparseCoder, *, scale: float, target_scale: float) -> SparseCoder:
    """The coder for activations times ``scale`` that `folded` turns into this one, to learn on."""
    if coder.config.skip and coder.config.normalisation != "none":
        raise InputError(
            f"the transcoder at {coder.hook} normalises its input, but not for its skip, which is not trained here",
            hint="train one anew: leave --from out",
        )
    made = folded(coder, scale=1 / scale, target_scale=1 / target_scale).float()
    made.origin, made.digest = None, None
    for parameter in made.parameters():
        # Of a view or a shared tensor nothing is left.
        parameter.data = parameter.detach().clone()
    # Stored transposed, as the sparse kernels like it.
    made.W_enc.data = made.W_enc.detach().T.contiguous().T
    return made.train().requires_grad_(True)


def normalised(coder: SparseCoder, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    """Activations as a coder normalises them, its decoder's bias not taken off."""
    frame, divisor = coder.normal_frame(x), coder.divisor(x)
    return x if frame is None or divisor is None else (x - frame.mean) / divisor


def variance_of(rows: Float[Tensor, "row d_in"]) -> float:
    """Mean squared distance from the mean; one where that is nothing."""
    return float((rows.double() - rows.double().mean(dim=0)).square().sum(dim=1).mean()) or 1.0


def one_threshold(coder: SparseCoder) -> float:
    """The threshold of all features. Raises InputError where they have different ones, as no BatchTopK leaves them."""
    threshold = coder.threshold.detach() if isinstance(coder, JumpReluSae) else coder.b_enc.new_zeros(1)
    first = float(threshold[0])
    if not torch.allclose(threshold, threshold[:1], rtol=_SAME, atol=0.0):
        raise InputError(
            f"the coder at {coder.hook} has thresholds of its features' own: it was not trained by BatchTopK",
            hint="train it on as --set sae.architecture=jumprelu",
        )
    return first


def put(parameter: nn.Parameter, value: Float[Tensor, "*shape"]) -> None:
    """Give a parameter another value, in the layout that it has."""
    with torch.no_grad():
        parameter.copy_(value.to(parameter))


def refuse_normalising(coder: SparseCoder, what: str) -> None:
    """Raise InputError for a coder that normalises its input."""
    if coder.config.normalisation != "none":
        raise InputError(
            f"the SAE at {coder.hook} has {coder.config.normalisation} of its input, which {what} does not know",
            hint="train it on as another sae.architecture, or begin anew: leave --from out",
        )
