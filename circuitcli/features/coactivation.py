"""How alike features of two coders are by when they are active: cosines and correlations over the same tokens.

What is kept of a coder are the codes that are not zero. Sums of products of all pairs of features are added up token by
token, from these alone: of k codes on either side k^2 numbers a token, into one matrix. Codes of which many are not
zero are multiplied as matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli import progress
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.saes.base import SparseCoder

Likeness = Literal["activation", "correlation"]
# Products of pairs at once.
_PAIRS = 2**22
# Entries of a matrix up to which sums are kept in double precision (256 MiB).
_DOUBLE = 2**25
# Sparse sums cost as much for one product as dense ones for so many.
_DENSER = 400


@dataclass(frozen=True)
class Codes:
    """The codes of some tokens that are not zero, token after token: those of token t lie from edges[t] to edges[t+1].

    features: which feature each is of; values: the codes.
    """

    d_sae: int
    features: Int[Tensor, " code"]
    values: Float[Tensor, " code"]
    edges: Int[Tensor, " edge"]

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.edges) - 1

    @property
    def live(self) -> Bool[Tensor, " d_sae"]:
        """Which features are active on any of the tokens."""
        return torch.bincount(self.features, minlength=self.d_sae) > 0

    def sums(self, power: int) -> Float[Tensor, " d_sae"]:
        """Sum over tokens of each feature's codes to this power, float64."""
        found = torch.zeros(self.d_sae, dtype=torch.float64)
        return found.index_add_(0, self.features.long(), self.values.double() ** power)

    def permuted(self, order: Int[Tensor, " token"]) -> "Codes":
        """The codes of the tokens in another order: what each token had, another one has."""
        counts = self.edges.diff()[order]
        edges = torch.cat([self.edges[:1], counts.cumsum(0)])
        places = torch.arange(int(edges[-1])) - (edges[:-1] - self.edges[:-1][order]).repeat_interleave(counts)
        return Codes(self.d_sae, self.features[places], self.values[places], edges)

    def rows(self, start: int, stop: int) -> "Codes":
        """Those of tokens start to stop."""
        first, last = int(self.edges[start]), int(self.edges[stop])
        edges = self.edges[start : stop + 1] - first
        return Codes(self.d_sae, self.features[first:last], self.values[first:last], edges)

    def dense(self) -> Float[Tensor, "token d_sae"]:
        """All codes, zero or not."""
        whole = self.values.new_zeros(self.n_tokens, self.d_sae)
        whole[torch.arange(self.n_tokens).repeat_interleave(self.edges.diff()), self.features.long()] = self.values
        return whole


@torch.no_grad()
def codes_of(coder: SparseCoder, cache: ActivationCache, *, n_tokens: int) -> Codes:
    """A coder's codes of the first tokens of a cache, or of all if it has fewer. Raises InputError for NaN in it."""
    stop = min(n_tokens, cache.n_tokens)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with progress.task(f"codes of {coder.hook}", total=stop, unit="tokens") as advance:
        for first, last in cache.pieces(0, stop, size=coder.rows_at_once, by_text=coder.reads_context):
            x = coder.joined({hook: cache.finite_rows(hook, first, last) for hook in coder.reads})
            found = coder.active(x.to(coder.W_enc))
            counts = torch.bincount(found.tokens.cpu(), minlength=last - first)
            parts.append((found.features.cpu().int(), found.values.float().cpu(), counts))
            advance(last - first)
    features, values, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    return Codes(coder.d_sae, features, values, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def likeness(one: Codes, other: Codes, by: Likeness = "activation") -> Float[Tensor, "d_one d_other"]:
    """Of each pair of features the cosine of their codes over the tokens, or their correlation; 0 for what is dead.

    Raises InputError if the codes are not of equally many tokens. Memory is one number for each pair.
    """
    products = sums_of_products(one, other)
    norms = [codes.sums(2) for codes in (one, other)]
    if by == "correlation":
        sums = [codes.sums(1) for codes in (one, other)]
        products.addr_(sums[0].to(products), sums[1].to(products), alpha=-1 / one.n_tokens)
        norms = [square - total**2 / one.n_tokens for square, total in zip(norms, sums, strict=True)]
    lengths = [square.clamp(min=0).sqrt() for square in norms]
    inverse = [torch.where(length > 0, 1 / length, 0.0).to(products) for length in lengths]
    return products.mul_(inverse[0][:, None]).mul_(inverse[1]).clamp_(-1, 1)


def sums_of_products(one: Codes, other: Codes) -> Float[Tensor, "d_one d_other"]:
    """Over tokens, for each pair of features; float64 where that takes no more than 256 MiB."""
    if one.n_tokens != other.n_tokens:
        raise InputError(
            f"features are compared over the same tokens, not over {one.n_tokens:,} and {other.n_tokens:,}",
            hint="encode both from one cache, or from aligned ones",
        )
    size = one.d_sae * other.d_sae
    total = torch.zeros(one.d_sae, other.d_sae, dtype=torch.float64 if size <= _DOUBLE else torch.float32)
    n_pairs = int((one.edges.diff() * other.edges.diff()).sum())
    if n_pairs > one.n_tokens * size / _DENSER:
        for start, stop in _pieces(one, other, most=_PAIRS, of=one.d_sae + other.d_sae):
            total.addmm_(one.rows(start, stop).dense().T.to(total), other.rows(start, stop).dense().to(total))
        return total
    flat = total.view(-1)
    for start, stop in _pieces(one, other, most=_PAIRS):
        places, values = _pairs(one.rows(start, stop), other.rows(start, stop))
        flat.index_add_(0, places, values.to(flat))
    return total


def _pieces(one: Codes, other: Codes, *, most: int, of: int | None = None) -> Iterator[tuple[int, int]]:
    """Tokens in pieces that have at most so many pairs of codes, or numbers if each has ``of``; one at least."""
    each = one.edges.diff() * other.edges.diff() if of is None else torch.full((one.n_tokens,), of)
    edges = torch.cat([each.new_zeros(1), each.cumsum(0)])
    start = 0
    while start < one.n_tokens:
        limit = torch.searchsorted(edges, edges[start] + most, right=True)
        stop = max(start + 1, int(limit) - 1)
        yield start, min(stop, one.n_tokens)
        start = stop


def _pairs(one: Codes, other: Codes) -> tuple[Int[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Places in the flat matrix, and products, of each token's codes of one with each of its codes of the other."""
    counts, starts = other.edges.diff(), other.edges[:-1]
    tokens = torch.arange(one.n_tokens).repeat_interleave(one.edges.diff())
    repeats = counts[tokens]
    left = torch.arange(len(one.features)).repeat_interleave(repeats)
    ends = repeats.cumsum(0)
    right = torch.arange(len(left)) - (ends - repeats - starts[tokens]).repeat_interleave(repeats)
    places = one.features[left].long() * other.d_sae + other.features[right].long()
    return places, one.values[left] * other.values[right]
