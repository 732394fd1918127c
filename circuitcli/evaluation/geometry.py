"""What the weights of an SAE alone tell: features that write what they read, and features that are nearly the same."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.progress import track
from circuitcli.saes.base import SparseCoder

# Cosines that are held at once, and features that are compared with all others where comparing all takes too long.
PIECE = 2**24
MOST_COMPARED, SAMPLE = 2**13, 4096
# With so many features it takes seconds.
MANY = 2**17


@torch.no_grad()
def geometry_facts(sae: SparseCoder, nearest: Float[Tensor, " compared"] | None = None) -> dict[str, Any]:
    """Cosines between weights; the nearest other decoder row is looked for among all features.

    encoder_decoder_cosine: of a feature's encoder column and decoder row, mean and largest over features; a transcoder,
    whose two sides are different spaces, has none. decoder_cosine: of each decoder row and its nearest other, mean and
    largest over ``n_compared`` features, all or an even sample. nearest: these, if they are known already. No copy of
    all weights is made.
    """
    facts: dict[str, Any] = {}
    if not sae.is_transcoder:
        cosines = torch.cat([_own_cosines(sae, piece) for piece in pieces(sae.d_sae, width=sae.d_in)])
        facts |= {
            "encoder_decoder_cosine_mean": float(cosines.cpu().double().mean()),
            "encoder_decoder_cosine_max": float(cosines.max()),
        }
    if nearest is None:
        nearest = nearest_cosines(sae.W_dec)
    if not len(nearest):
        return facts
    return facts | {
        "decoder_cosine_mean": float(nearest.cpu().double().mean()),
        "decoder_cosine_max": float(nearest.max()),
        "n_compared": len(nearest),
    }


def pieces(n: int, *, width: int) -> list[slice]:
    """Slices of n features of which so many numbers each are held at once."""
    size = max(1, PIECE // width)
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _own_cosines(sae: SparseCoder, piece: slice) -> Float[Tensor, " piece"]:
    encoder, decoder = (F.normalize(side[piece].float(), dim=1) for side in (sae.W_enc.T, sae.W_dec))
    return torch.linalg.vecdot(encoder, decoder)


@torch.no_grad()
def nearest_cosines(rows: Float[Tensor, "d_sae d"]) -> Float[Tensor, " compared"]:
    """The largest cosine of each chosen row with any other one; none if there is no other.

    All rows are passed over once, a piece after the other, with a bar for many.
    """
    n = len(rows)
    if n < 2:
        return rows.new_empty(0)
    chosen = (torch.arange(n) if n <= MOST_COMPARED else torch.arange(SAMPLE) * n // SAMPLE).to(rows.device)
    ours = F.normalize(rows[chosen].float(), dim=1)
    nearest = ours.new_full((len(chosen),), -torch.inf)
    parts = pieces(n, width=max(len(chosen), rows.shape[1]))
    for piece in track(parts, "compare features", unit="pieces") if n >= MANY else parts:
        cosines = ours @ F.normalize(rows[piece].float(), dim=1).T  # (compared, piece)
        own = ((chosen >= piece.start) & (chosen < piece.stop)).nonzero()[:, 0]
        cosines[own, chosen[own] - piece.start] = -torch.inf
        nearest = torch.maximum(nearest, cosines.amax(dim=1))
    return nearest
