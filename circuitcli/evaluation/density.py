"""How often features are active."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

# Of the histogram, in powers of ten.
BIN_WIDTH = 0.25
RARE, COMMON = (1e-6, 1e-5), (0.01, 0.1)


def density_facts(counts: Int[Tensor, " d_sae"], *, n_tokens: int) -> dict[str, Any]:
    """Shares of rare and common features, and a histogram of log10 of the share of tokens that activate a feature.

    counts: tokens that activate each feature. Features that none activates are counted apart: on so many tokens nothing
    below ``1 / n_tokens`` can be told from never, so the same tokens must be taken to compare two SAEs.
    """
    share = counts.double() / n_tokens
    facts: dict[str, Any] = {"n_tokens": n_tokens, "n_never": int((counts == 0).sum())}
    facts |= {f"below_{limit:g}": float((share < limit).double().mean()) for limit in RARE}
    facts |= {f"above_{limit:g}": float((share > limit).double().mean()) for limit in COMMON}
    n_bins = math.ceil(math.log10(n_tokens) / BIN_WIDTH) or 1
    edges = [BIN_WIDTH * (index - n_bins) for index in range(n_bins + 1)]
    # Into the bin that begins at or below; a feature that is always active belongs to the last.
    bins = ((share[counts > 0].log10() - edges[0]) / BIN_WIDTH + 1e-9).floor().long().clamp(0, n_bins - 1)
    return facts | {"log10_edges": edges, "n_features": torch.bincount(bins, minlength=n_bins).tolist()}
