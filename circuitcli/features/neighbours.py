"""Which features of a coder, or of another one, are most like some features: by what they write, and by when they are
active. Of all pairs, as many are held at once as fit into some MiB."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.features.coactivation import Codes, likeness
from circuitcli.features.matching import directions
from circuitcli.saes.base import SparseCoder

# Pairs of features that are held at once (64 MiB in double precision).
PAIRS_AT_ONCE = 2**23
# A feature that is active at fewer tokens than that is like many others by chance.
LEAST_ACTIVE = 5


@dataclass(frozen=True)
class Nearest:
    """For each feature that was asked for the features most like it, most alike first.

    Where there are fewer than asked for, values are -inf; ``features`` are numbers of the other coder's features.
    """

    features: Int[Tensor, "n top"]
    values: Float[Tensor, "n top"]

    def row(self, number: int) -> list[tuple[int, float]]:
        """Features and values for the feature that was asked for at this place."""
        pairs = zip(self.features[number].tolist(), self.values[number].tolist(), strict=True)
        return [(feature, value) for feature, value in pairs if value > -1.5]


def total_directions(coder: SparseCoder) -> Float[Tensor, "d_sae d"]:
    """What each feature adds to the model in all, whatever the layer, of length 1; zero for one that adds nothing.

    So coders that write another number of hook points can be compared.
    """
    if len(coder.writes) == 1:
        return directions(coder)
    whole = torch.stack([coder.decoder(hook).detach().float() for hook in coder.writes]).sum(dim=0)
    norm = whole.norm(dim=1, keepdim=True)
    return whole / norm.where(norm > 0, 1.0)


@torch.no_grad()
def nearest_decoders(
    coder: SparseCoder, other: SparseCoder, wanted: Int[Tensor, " n"], *, n_top: int, among: Int[Tensor, " m"]
) -> Nearest:
    """The features of ``other``, among those given, whose decoder directions have the largest cosines with those wanted
    of ``coder``; a feature is not its own neighbour. Of coders that write different widths there are none."""
    is_same = coder is other
    ours = directions(coder) if is_same else total_directions(coder)
    # Either coder may have been moved to the model's device.
    theirs = ours if is_same else total_directions(other).to(ours.device)
    if ours.shape[1] != theirs.shape[1]:
        return _none(len(wanted))
    parts = [
        _best(ours[piece] @ theirs[among].T, among, n_top=n_top, own=piece if is_same else None)
        for piece in _pieces(wanted, len(among))
    ]
    return _joined(parts)


@torch.no_grad()
def most_correlated(
    codes: Codes, other: Codes, wanted: Int[Tensor, " n"], *, n_top: int, is_same: bool | None = None
) -> Nearest:
    """The features of ``other`` whose codes correlate most with those wanted of ``codes``, over the same tokens.

    Features that are active at fewer than LEAST_ACTIVE of them are left out, on either side. is_same: whether both are
    codes of one coder, of which a feature is not its own neighbour; by default whether they are one value.
    """
    is_same = codes is other if is_same is None else is_same
    among = (_times_active(other) >= LEAST_ACTIVE).nonzero()[:, 0]
    is_rare = _times_active(codes)[wanted] < LEAST_ACTIVE
    parts = []
    for piece in _pieces(wanted, other.d_sae):
        found = likeness(chosen(codes, piece), other, "correlation").float()[:, among]
        parts.append(_best(found, among, n_top=n_top, own=piece if is_same else None))
    joined = _joined(parts)
    return Nearest(joined.features, joined.values.masked_fill(is_rare[:, None], -torch.inf))


def chosen(codes: Codes, features: Int[Tensor, " n"]) -> Codes:
    """The codes of these features alone, which are numbered as they are given."""
    number = torch.full((codes.d_sae,), -1, dtype=torch.int32)
    number[features] = torch.arange(len(features), dtype=torch.int32)
    own = number[codes.features.long()]
    is_kept = own >= 0
    edges = torch.cat([codes.edges.new_zeros(1), is_kept.long().cumsum(0)])[codes.edges]
    return Codes(len(features), own[is_kept], codes.values[is_kept], edges)


def _times_active(codes: Codes) -> Int[Tensor, " d_sae"]:
    return torch.bincount(codes.features.long(), minlength=codes.d_sae)


def _pieces(wanted: Int[Tensor, " n"], n_others: int) -> Iterator[Int[Tensor, " piece"]]:
    yield from wanted.split(max(1, PAIRS_AT_ONCE // max(n_others, 1))) if len(wanted) else [wanted]


def _best(
    found: Float[Tensor, "piece m"], among: Int[Tensor, " m"], *, n_top: int, own: Int[Tensor, " piece"] | None
) -> Nearest:
    if own is not None:
        is_own = own[:, None] == among[None]
        found = found.masked_fill(is_own.to(found.device), -torch.inf)
    best = found.topk(min(n_top, found.shape[1]), dim=1)
    return Nearest(among[best.indices.to(among.device)].cpu(), best.values.cpu())


def _joined(parts: list[Nearest]) -> Nearest:
    return Nearest(torch.cat([part.features for part in parts]), torch.cat([part.values for part in parts]))


def _none(n: int) -> Nearest:
    return Nearest(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
