"""Which pre-activations become codes while an SAE learns: the largest of each token, or of the whole batch, or those
above a floor."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.saes.fast import screening
from circuitcli.saes.fast.screening import Entries, Screen, flat_places

# Pre-activations are made and searched for so many tokens at once, which bounds memory and costs no time.
PIECE_ROWS = 1024
# Features are first compared in groups of so many.
GROUPED = 16
# Of each token so many times k candidates are kept for the choice over the batch; a token with more is looked at again.
CANDIDATES = 4


class Chosen(NamedTuple):
    """Pre-activations that were chosen, token after token."""

    values: Float[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]


@runtime_checkable
class Together(Protocol):
    """Processes that each have a part of one batch, of equal size."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all."""
        ...

    def threshold(self, values: Float[Tensor, " values"], n: int) -> float:
        """The ``n * processes``-th largest of all their values."""
        ...


class Selection(ABC):
    """A rule; `choose` is `mask` without the matrix of all pre-activations."""

    @abstractmethod
    def mask(self, pre: Float[Tensor, "batch d_sae"]) -> Bool[Tensor, "batch d_sae"]:
        """Where the selected ones are: the definition."""

    @abstractmethod
    def choose(
        self,
        centred: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> Chosen:
        """The selected ones of ``centred @ W_enc + b_enc``."""


@dataclass(frozen=True)
class TopK(Selection):
    """The k largest of each token."""

    k: int

    def mask(self, pre: Float[Tensor, "batch d_sae"]) -> Bool[Tensor, "batch d_sae"]:
        """See `Selection`."""
        indices = pre.topk(self.k, dim=1, sorted=False).indices
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(1, indices, True)

    def choose(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Chosen:
        """See `Selection`."""
        values, features = _largest(centred, W_enc, b_enc, k=self.k)
        tokens = torch.arange(len(centred), device=centred.device).repeat_interleave(self.k)
        return Chosen(values.flatten(), features.flatten(), tokens)


@dataclass(frozen=True)
class BatchTopK(Selection):
    """The k * batch largest of the batch (Bussmann et al. 2024, arXiv:2412.06410).

    together: the other processes that have a part of the batch; None if there is none.
    """

    k: int
    together: Together | None = None

    def mask(self, pre: Float[Tensor, "batch d_sae"]) -> Bool[Tensor, "batch d_sae"]:
        """See `Selection`."""
        return self._largest_of(pre.flatten(), n=self.k * len(pre)).view_as(pre)

    def _largest_of(self, values: Float[Tensor, " values"], *, n: int) -> Bool[Tensor, " values"]:
        if self.together is not None:
            return values >= self.together.threshold(values, n)
        indices = values.topk(min(n, len(values)), sorted=False).indices
        return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, indices, True)

    def choose(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Chosen:
        """See `Selection`."""
        n_tokens, d_sae = len(centred), b_enc.shape[0]
        # Processes would have to agree on it, and their processors may differ.
        if self.together is None and _screens(centred, d_sae=d_sae, k=self.k):
            found = self._screened(centred, W_enc, b_enc)
            if found is not None:
                return found
        n_candidates = min(CANDIDATES * self.k, d_sae)
        values, features = _largest(centred, W_enc, b_enc, k=n_candidates)
        kept = self._largest_of(values.flatten(), n=self.k * n_tokens).view_as(values)
        crowded = kept[: n_tokens if n_candidates < d_sae else 0].all(dim=1).nonzero()[:, 0]
        # All processes look again if one must, because they look together.
        n_crowded = len(crowded) if self.together is None else int(self.together.sum(torch.tensor(len(crowded))))
        if not n_crowded:
            tokens = kept.nonzero()[:, 0]
            return Chosen(values[kept], features[kept], tokens)
        return self._with_whole(crowded, values, features, torch.addmm(b_enc, centred[crowded], W_enc))

    def _screened(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Chosen | None:
        """The same through bfloat16; None for numbers that are not finite, or too close together."""
        n, screen = self.k * len(centred), Screen(centred, W_enc, b_enc)
        # Of so many pre-activations the n-th largest is no larger than that of all.
        some = [
            screen.at_least(start, screening.maxima(pre, self.k))
            for start, pre in _pieces(screen.rows, screen.weights, screen.bias)
        ]
        least = float(torch.cat(some).flatten().topk(n, sorted=False).values.min())
        if not math.isfinite(least):
            return None
        found = _all_above(screen, least, most=CANDIDATES * n)
        if found is None:
            return None
        kept = self._largest_of(found.values, n=n)
        return Chosen(found.values[kept], found.features[kept], found.tokens[kept])

    def _with_whole(
        self,
        crowded: Int[Tensor, " crowded"],
        values: Float[Tensor, "batch candidates"],
        features: Int[Tensor, "batch candidates"],
        whole: Float[Tensor, "crowded d_sae"],
    ) -> Chosen:
        """Choose among the candidates of most tokens and all pre-activations of the crowded ones."""
        n_tokens, d_sae = len(values), whole.shape[1]
        device = values.device
        others = torch.ones(n_tokens, dtype=torch.bool, device=device).index_fill_(0, crowded, False).nonzero()[:, 0]
        all_values = torch.cat([values[others].flatten(), whole.flatten()])
        all_features = torch.cat([features[others].flatten(), torch.arange(d_sae, device=device).repeat(len(crowded))])
        all_tokens = torch.cat([others.repeat_interleave(values.shape[1]), crowded.repeat_interleave(d_sae)])
        kept = self._largest_of(all_values, n=self.k * n_tokens)
        tokens, order = all_tokens[kept].sort(stable=True)
        return Chosen(all_values[kept][order], all_features[kept][order], tokens)


class Crowded(Exception):
    """More pre-activations were selected than sparse sums are for."""


@dataclass(frozen=True)
class Above(Selection):
    """Those above a floor, of one number or of one for each feature, (d_sae,).

    most: how large a share of all they may be; `choose` raises Crowded if there are more.
    """

    floor: Tensor
    most: float

    def mask(self, pre: Float[Tensor, "batch d_sae"]) -> Bool[Tensor, "batch d_sae"]:
        """See `Selection`. NaN is selected, for the loss to tell of it."""
        return (pre <= self.floor).logical_not_()

    def choose(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Chosen:
        """See `Selection`. Raises Crowded."""
        batch, d_sae = len(centred), b_enc.shape[0]
        if _screens(centred, d_sae=d_sae, k=1):
            found = self._screened(centred, W_enc, b_enc)
            if found is not None:
                return found
        values, places, n_chosen = [], [], 0
        for start, pre in _pieces(*_as_multiplied(centred, W_enc, b_enc)):
            chosen = flat_places(self.mask(pre))
            n_chosen += len(chosen)
            if n_chosen > self.most * batch * d_sae:
                raise Crowded
            values.append(pre.view(-1).index_select(0, chosen).to(centred.dtype))
            places.append(chosen + start * d_sae)
        flat = torch.cat(places)
        tokens = torch.div(flat, d_sae, rounding_mode="floor")
        return Chosen(torch.cat(values), flat - tokens * d_sae, tokens)

    def _screened(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Chosen | None:
        """The same through bfloat16; None for numbers that are not finite, or if too many may be above."""
        # Above their floors are those that are above zero with the floors taken off.
        screen = Screen(centred, W_enc, b_enc - self.floor)
        found = _all_above(screen, 0.0, most=int(self.most * len(centred) * len(b_enc))) if screen.is_finite else None
        if found is None:
            return None
        kept = found.values > 0
        features = found.features[kept]
        values = found.values[kept] + self.floor.expand_as(b_enc).index_select(0, features)
        return Chosen(values, features, found.tokens[kept])


def _all_above(screen: Screen, least: float, *, most: int) -> Entries | None:
    """All pre-activations that are no smaller than ``least``, and some that are; None if they may be more than most."""
    parts: list[Entries] = []
    for start, pre in _pieces(screen.rows, screen.weights, screen.bias):
        entries = screen.above(start, pre, least, most=most - sum(len(part.values) for part in parts))
        if entries is None:
            return None
        parts.append(entries)
    return Entries(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _screens(centred: Float[Tensor, "batch d_in"], *, d_sae: int, k: int) -> bool:
    """Whether the largest are found through bfloat16."""
    is_float32 = len(centred) > 0 and _multiplied_in(centred) == torch.float32
    return is_float32 and screening.pays(centred.device, d_sae=d_sae, k=k)


def _multiplied_in(rows: Tensor) -> torch.dtype:
    """The number type of products: under autocast its own."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def _as_multiplied(rows: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _multiplied_in(rows)
    return rows.to(dtype), weights.to(dtype), bias.to(dtype)


def _pieces(
    rows: Float[Tensor, "batch d_in"], weights: Float[Tensor, "d_in d_sae"], bias: Float[Tensor, " d_sae"]
) -> Iterator[tuple[int, Float[Tensor, "rows d_sae"]]]:
    """Pre-activations of a piece of the batch after the other, and its first row; a piece holds until the next."""
    batch = len(rows)
    piece = rows.new_empty(min(PIECE_ROWS, batch), len(bias))
    for start in range(0, max(1, batch), PIECE_ROWS):
        here = slice(start, min(start + PIECE_ROWS, batch))
        yield start, torch.addmm(bias, rows[here], weights, out=piece[: here.stop - start])


def _largest(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest pre-activations of each token, and their features; in pieces of the batch."""
    batch = len(centred)
    values = centred.new_empty(batch, k)
    indices = centred.new_empty(batch, k, dtype=torch.int64)
    if _screens(centred, d_sae=len(b_enc), k=k):
        screen = Screen(centred, W_enc, b_enc)
        for start, pre in _pieces(screen.rows, screen.weights, screen.bias):
            here = slice(start, start + len(pre))
            values[here], indices[here] = screen.largest(start, pre, k)
        return values, indices
    for start, pre in _pieces(*_as_multiplied(centred, W_enc, b_enc)):
        here = slice(start, start + len(pre))
        values[here], indices[here] = largest_of_each(pre, k)
    return values, indices


def largest_of_each(pre: Float[Tensor, "rows d_sae"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they are, in any order; `torch.topk` for rows much longer than k.

    They lie in the k groups whose largest members are largest, so the search is among these groups' members alone.
    """
    n_groups = pre.shape[1] // GROUPED
    if n_groups <= 2 * k:
        return pre.topk(k, dim=1, sorted=False)
    # Feature j * n_groups + i belongs to group i: maxima over a middle axis are many times as fast as over the last.
    grouped = pre[:, : GROUPED * n_groups].unflatten(1, (GROUPED, n_groups))
    groups = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    members = grouped.gather(2, groups[:, None, :].expand(-1, GROUPED, -1)).flatten(1)  # (rows, GROUPED * k)
    rest = pre[:, GROUPED * n_groups :]
    values, places = torch.cat([members, rest], dim=1).topk(k, dim=1, sorted=False)
    inside = torch.div(places, k, rounding_mode="floor") * n_groups + groups.gather(1, places % k)
    beyond = places + (n_groups - k) * GROUPED
    return values, torch.where(places < GROUPED * k, inside, beyond)
