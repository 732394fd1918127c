"""How an autoencoder begins, and how it moves between normalised and raw activations."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae


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


def initial_sae(hook: HookPoint, first: Float[Tensor, "batch d_in"], *, d_sae: int, k: int, seed: int) -> TopKSae:
    """Random unit decoder rows, the encoder their transpose, the decoder bias the geometric median of ``first``.

    The numbers depend on the seed and the hook point only, so a hook point's SAE does not depend on which others
    are trained beside it. ``W_enc`` is stored transposed, as the sparse kernels like it.
    """
    sae = TopKSae(SaeConfig(hook, first.shape[1], d_sae), k=k)
    word = hashlib.sha256(f"{seed} {hook}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(word, "big"))
    decoder = torch.randn(d_sae, first.shape[1], generator=generator)
    decoder /= torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
    sae.W_dec = nn.Parameter(decoder.clone())
    sae.W_enc = nn.Parameter(decoder.T)
    sae.b_dec = nn.Parameter(geometric_median(first.cpu().double()).float())
    return sae.to(first.device)


def input_scale(mean_square_norm: float, *, d_in: int) -> float:
    """The factor after which the mean squared norm of activations is their width."""
    return (d_in / mean_square_norm) ** 0.5 if mean_square_norm > 0 else 1.0


def folded(sae: TopKSae, *, scale: float) -> TopKSae:
    """The SAE for raw activations that does what this one does for activations times ``scale``.

    Only the biases change: decoder rows keep their norm, so that codes are in units of the raw activations.
    """
    raw = TopKSae(sae.config, k=sae.k)
    with torch.no_grad():
        raw.W_enc.copy_(sae.W_enc)
        raw.W_dec.copy_(sae.W_dec)
        raw.b_enc.copy_(sae.b_enc / scale)
        raw.b_dec.copy_(sae.b_dec / scale)
    return raw.eval().requires_grad_(False)
