"""What the weights of an SAE alone tell: features that write what they read, and features that are nearly the same."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseAutoencoder

# Cosines that are held at once, and features that are compared with all others where comparing all takes too long.
PIECE = 2**24
MOST_COMPARED, SAMPLE = 2**13, 4096


@torch.no_grad()
def geometry_facts(sae: SparseAutoencoder, nearest: Float[Tensor, " compared"] | None = None) -> dict[str, Any]:
    """Cosines between weights; the nearest other decoder row is looked for among all features.

    encoder_decoder_cosine: of a feature's encoder column and decoder row, mean and largest over features; a transcoder,
    whose two sides are different spaces, has none. decoder_cosine: of each decoder row and its nearest other, mean and
    largest over ``n_compared`` features, all or an even sample. nearest: these, if they are known already.
    """
    decoder = F.normalize(sae.W_dec.float(), dim=1)
    facts: dict[str, Any] = {}
    if not sae.is_transcoder:
        cosines = torch.linalg.vecdot(F.normalize(sae.W_enc.T.float(), dim=1), decoder)
        facts |= {
            "encoder_decoder_cosine_mean": float(cosines.cpu().double().mean()),
            "encoder_decoder_cosine_max": float(cosines.max()),
        }
    if nearest is None:
        nearest = nearest_cosines(decoder)
    if not len(nearest):
        return facts
    return facts | {
        "decoder_cosine_mean": float(nearest.cpu().double().mean()),
        "decoder_cosine_max": float(nearest.max()),
        "n_compared": len(nearest),
    }


def nearest_cosines(unit: Float[Tensor, "d_sae d"]) -> Float[Tensor, " compared"]:
    """The largest cosine of each chosen unit vector with any other one; none if there is no other."""
    n = len(unit)
    if n < 2:
        return unit.new_empty(0)
    chosen = torch.arange(n) if n <= MOST_COMPARED else torch.arange(SAMPLE) * n // SAMPLE
    found = []
    for rows in chosen.to(unit.device).split(max(1, PIECE // n)):
        cosines = unit[rows] @ unit.T  # (rows, d_sae)
        cosines.scatter_(1, rows[:, None], -torch.inf)
        found.append(cosines.amax(dim=1))
    return torch.cat(found)
