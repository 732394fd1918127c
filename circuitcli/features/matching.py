"""Which feature of one coder is which of another one, by the cosine of their decoder directions."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder

# Features count as the same from here on (Paulo & Belrose 2025, arXiv:2501.16615, who ask it of the encoder too).
LEAST_COSINE = 0.7


def directions(coder: SparseCoder) -> Float[Tensor, "d_sae d"]:
    """Of each feature all that it writes, one hook point after the other, of length 1; zero for one that writes
    nothing."""
    whole = torch.cat([coder.decoder(hook) for hook in coder.writes], dim=1).detach().float()
    norm = whole.norm(dim=1, keepdim=True)
    return whole / norm.where(norm > 0, 1.0)


def matched(
    coder: SparseCoder, other: SparseCoder, wanted: Iterable[int], *, least: float = LEAST_COSINE
) -> dict[int, tuple[int, float]]:
    """For features of ``other`` the feature of ``coder`` that is most like each, and the cosine, where that is at least
    ``least``; no feature of ``coder`` is given to two: the one that is most like it gets it.

    Both coders read and write the same. Widths may differ.
    """
    asked = sorted(set(wanted))
    if not asked:
        return {}
    best = (directions(other)[asked] @ directions(coder).T).max(dim=1)
    found: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    ranked = sorted(zip(best.values.tolist(), asked, best.indices.tolist(), strict=True), key=lambda one: -one[0])
    for cosine, feature, own in ranked:
        if cosine >= least and own not in taken:
            taken.add(own)
            found[feature] = own, cosine
    return found
