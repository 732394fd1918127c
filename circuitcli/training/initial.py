"""How an autoencoder begins, and how it moves between normalised and raw activations."""

import copy
import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder


def geometric_median(
    x: Float[Tensor, "batch d_in"], *, steps: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_in"]:
    """The point with the least mean distance from all rows, by Weiszfeld's iteration.

    Stops when the point moves by less than ``tolerance`` of its median distance from the rows.
    """
    point = x.mean(dim=0)
    for _ in range(steps):
        distances = torch.linalg.vector_norm(x - point, dim=1)
        if not distances.any():
            break
        shares = 1.0 / distances.clamp_min(1e-8 * float(distances.mean()))
        moved = (shares @ x) / shares.sum()
        if torch.linalg.vector_norm(moved - point) <= tolerance * distances.median():
            return moved
        point = moved
    return point


def generator_of(seed: int, hook: HookPoint) -> torch.Generator:
    """Random numbers that depend on the seed and the hook point only, not on what is trained beside it."""
    word = hashlib.sha256(f"{seed} {hook}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(word, "big"))


def unit_rows(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "n width"]:
    """Random directions."""
    rows = torch.randn(n, width, generator=generator)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


@torch.no_grad()
def start_autoencoder(
    sae: SparseCoder, first: Float[Tensor, "batch d_in"], *, norm: float, generator: torch.Generator
) -> None:
    """Random decoder rows of this norm, the encoder their transpose, the decoder bias the median of ``first``.

    ``W_enc`` is stored transposed, as the sparse kernels like it.
    """
    decoder = norm * unit_rows(sae.d_sae, sae.d_in, generator)
    sae.W_dec.data, sae.W_enc.data = decoder.clone(), decoder.T
    sae.b_dec.copy_(geometric_median(first.cpu().double()))


@torch.no_grad()
def start_transcoder(
    sae: SparseCoder,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    *,
    generator: torch.Generator,
) -> None:
    """Random unit rows on both sides; biases that centre the input on its mean and begin at the target's median."""
    sae.W_enc.data = unit_rows(sae.d_sae, sae.d_in, generator).T
    sae.W_dec.data = unit_rows(sae.d_sae, sae.d_out, generator)
    sae.b_enc.copy_(-(x.cpu().mean(dim=0) @ sae.W_enc))
    sae.b_dec.copy_(geometric_median(y.cpu().double()))


def input_scale(mean_square_norm: float, *, d_in: int) -> float:
    """The factor after which the mean squared norm of activations is their width."""
    return (d_in / mean_square_norm) ** 0.5 if mean_square_norm > 0 else 1.0


# What is in units of the codes or of the reconstruction, and what turns one scale into the other.
_BIASES = ("b_enc", "b_dec", "b_mag", "threshold")
_PRODUCTS = ("W_enc", "W_skip")


@torch.no_grad()
def folded(sae: SparseCoder, *, scale: float, target_scale: float | None = None) -> SparseCoder:
    """The SAE for raw activations that does what this one does for activations times ``scale``.

    A transcoder's target was multiplied by ``target_scale``. Decoder rows keep their norm, so that codes are in units
    of what is reconstructed: ``folded(sae)(x) == sae(scale * x) / target_scale``.
    """
    raw = copy.deepcopy(sae)
    out = scale if target_scale is None else target_scale
    for name, parameter in raw.named_parameters():
        if name in _BIASES:
            parameter.div_(out)
        elif name in _PRODUCTS and scale != out:
            parameter.mul_(scale / out)
    return raw.eval().requires_grad_(False)


@torch.no_grad()
def with_unit_decoder(sae: SparseCoder) -> SparseCoder:
    """The SAE with decoder rows of length one that reconstructs the same: their norms move into the codes.

    Not for TopK, where the norms would change which codes are largest. A row of length zero stays.
    """
    unit = copy.deepcopy(sae)
    norms = torch.linalg.vector_norm(unit.W_dec, dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    unit.W_dec.div_(norms[:, None])
    unit.W_enc.mul_(norms)
    for name in ("b_enc", "b_mag", "threshold"):
        if hasattr(unit, name):
            getattr(unit, name).mul_(norms)
    return unit
