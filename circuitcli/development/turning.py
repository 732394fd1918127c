"""When features of a crosscoder over checkpoints are born, die and turn, by how long and whither their directions are.

RelDec_i(t) = |d_i(t)| / sum over t of |d_i(t)|, RelIE_i(t) = |IE_i(t)| / sum over t of |IE_i(t)| (arXiv:2509.05291).
A feature is there at a checkpoint where its direction is at least half as long as where it is longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PRESENT = 0.5
# Directions below this cosine count as others, as features of two SAEs do.
TURNED = 0.7
N_BINS = 20
KINDS = ("throughout", "early", "late", "passing")


def relative(values: Float[Tensor, "checkpoint feature"]) -> Float[Tensor, "checkpoint feature"]:
    """Each size as a share of the sum over all checkpoints; zero where all are."""
    sizes = values.abs().double()
    total = sizes.sum(dim=0)
    return sizes / total.where(total > 0, 1.0)


@dataclass(frozen=True)
class Life:
    """The first and the last checkpoint, by number, at which a feature is there, and the cosine of its directions at
    the two."""

    first: int
    last: int
    cosine: float

    def kind(self, n_checkpoints: int) -> str:
        """``throughout`` if it is there at the first and the last checkpoint, ``early`` at the first alone, ``late`` at
        the last alone, ``passing`` at neither."""
        is_early, is_late = self.first == 0, self.last == n_checkpoints - 1
        return KINDS[0 if is_early and is_late else 1 if is_early else 2 if is_late else 3]


def lives(
    norms: Float[Tensor, "checkpoint feature"], directions: Float[Tensor, "checkpoint feature d_model"]
) -> list[Life]:
    """That of each feature; a feature of length zero is there nowhere and counts as there throughout, which it is by
    its own measure: leave it out.

    norms: lengths of the directions in units that can be compared between checkpoints.
    """
    there = norms >= PRESENT * norms.amax(dim=0)
    numbers = torch.arange(len(norms))[:, None]
    first = numbers.where(there.cpu(), len(norms)).amin(dim=0)
    last = numbers.where(there.cpu(), -1).amax(dim=0)
    index = torch.arange(norms.shape[1])
    cosines = torch.cosine_similarity(directions.cpu()[first, index], directions.cpu()[last, index], dim=1)
    return [Life(*one) for one in zip(first.tolist(), last.tolist(), cosines.tolist(), strict=True)]


@dataclass(frozen=True)
class Turns:
    """Of the features of a crosscoder: how many of each kind, how many are born and have died at each checkpoint, and
    how many of those that are there at several have turned in between."""

    kinds: dict[str, int]
    born: tuple[int, ...]
    died: tuple[int, ...]
    turned: int
    staying: int


def turns(found: Sequence[Life], *, n_checkpoints: int) -> Turns:
    """The counts. Of the first checkpoint none is born, as nobody knows what was before."""
    kinds = [one.kind(n_checkpoints) for one in found]
    staying = [one for one in found if one.last > one.first]
    return Turns(
        kinds={name: kinds.count(name) for name in KINDS},
        born=tuple(sum(one.first == t for one in found) * (t > 0) for t in range(n_checkpoints)),
        died=tuple(sum(one.last == t - 1 for one in found) for t in range(n_checkpoints)),
        turned=sum(one.cosine < TURNED for one in staying),
        staying=len(staying),
    )


def histograms(shares: Float[Tensor, "checkpoint feature"]) -> list[list[int]]:
    """Of each checkpoint the number of features in each of `N_BINS` equal bins of a share from 0 to 1."""
    bins = (shares * N_BINS).floor().long().clamp(0, N_BINS - 1)
    return [torch.bincount(row.cpu(), minlength=N_BINS).tolist() for row in bins]


def first_against_last(norms: Float[Tensor, "checkpoint feature"]) -> Float[Tensor, " feature"]:
    """RelDec of the last checkpoint against the first alone: 0 for features of the first, 1 for those of the last."""
    return relative(norms[[0, -1]])[1]
