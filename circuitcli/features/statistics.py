"""How often and how strongly each feature is active, counted over a stream of activations in bounded memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

# A bin spans a factor of 2 ** (1 / 16), so its geometric middle is within 2.2 % of every value in it.
BINS_PER_OCTAVE = 16
LOWEST_OCTAVE, HIGHEST_OCTAVE = -20, 20
N_BINS = BINS_PER_OCTAVE * (HIGHEST_OCTAVE - LOWEST_OCTAVE)

# Bins of a histogram that is shown, at most; the widest span a power of two of those kept that divides their number.
SHOWN_BINS = 32


@dataclass(frozen=True)
class Histogram:
    """How many activations lie in each bin; edges rise, one more than counts, by a constant factor between the ends."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class ActivationStatistics:
    """Count, sum, extremes and a log-spaced histogram of each feature's activations above zero, on the CPU.

    Quantiles are read off the histogram: 40 octaves around 1, 16 bins each (2.5 KiB for each feature). They are within
    2.2 % of the exact ones for activations between 2**-20 and 2**20; beyond, they are clamped to the octaves' ends and
    to the exact extremes. All else is exact.
    """

    def __init__(self, d_sae: int) -> None:
        self.n_tokens = 0
        self.n_active: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        self.total: Float[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        self.largest: Float[Tensor, " d_sae"] = torch.zeros(d_sae)
        self.smallest: Float[Tensor, " d_sae"] = torch.full((d_sae,), torch.inf)
        self._histogram = torch.zeros(d_sae * N_BINS, dtype=torch.int32)

    def add(self, features: Int[Tensor, " entry"], values: Float[Tensor, " entry"], *, n_tokens: int) -> None:
        """Count the activations of ``n_tokens`` more tokens: one entry for each feature active at a token."""
        self.n_tokens += n_tokens
        self.n_active += torch.bincount(features, minlength=len(self.n_active))
        self.total.index_add_(0, features, values.double())
        self.largest.scatter_reduce_(0, features, values, "amax")
        self.smallest.scatter_reduce_(0, features, values, "amin")
        bins = (values.log2() - LOWEST_OCTAVE).mul(BINS_PER_OCTAVE).floor().clamp(0, N_BINS - 1)
        cells = features * N_BINS + bins.long()
        self._histogram.index_add_(0, cells, torch.ones(len(cells), dtype=torch.int32))

    @property
    def live(self) -> Int[Tensor, " live"]:
        """Features that were active at least once, in order."""
        return self.n_active.nonzero()[:, 0]

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens at which each feature is active, float64."""
        return self.n_active.double() / max(self.n_tokens, 1)

    @property
    def mean(self) -> Float[Tensor, " d_sae"]:
        """Mean activation where active, float64; 0 for a feature that never is."""
        return self.total / self.n_active.clamp(min=1)

    def histogram(self, feature: int) -> Histogram | None:
        """How a feature's activations above zero are spread, in at most SHOWN_BINS bins; None if it has none.

        Every activation is counted once. Bins are of 1/16 octave or, where the activations span more of these, of two
        of them, of four, ...; features that have bins of one width have the same edges. The outermost edges go out to
        the extremes where these lie beyond the 40 octaves that are told apart.
        """
        counts = self._histogram.view(-1, N_BINS)[feature]
        occupied = counts.nonzero()[:, 0]
        if not len(occupied):
            return None
        lowest, highest, width = int(occupied[0]), int(occupied[-1]), 1
        while highest // width - lowest // width >= SHOWN_BINS:
            width *= 2
        first, last = lowest // width, highest // width
        edges = [2.0 ** (index * width / BINS_PER_OCTAVE + LOWEST_OCTAVE) for index in range(first, last + 2)]
        edges[0] = min(edges[0], float(self.smallest[feature]))
        edges[-1] = max(edges[-1], float(self.largest[feature]))
        return Histogram(tuple(edges), tuple(counts.view(-1, width).sum(dim=1)[first : last + 1].tolist()))

    def shares_below(self, feature: int, values: Float[Tensor, " n"]) -> list[float]:
        """Share of a feature's activations above zero that are no larger than each of some of them, read off the
        histogram: of those in the value's own bin half count. 1 for the largest."""
        counts = self._histogram.view(-1, N_BINS)[feature].double()
        places = (values.log2() - LOWEST_OCTAVE).mul(BINS_PER_OCTAVE).floor().clamp(0, N_BINS - 1).long()
        shares = (counts.cumsum(0)[places] - counts[places] / 2) / counts.sum().clamp(min=1)
        return torch.where(values >= self.largest[feature], 1.0, shares).tolist()

    def quantiles(self, features: Int[Tensor, " n"]) -> Float[Tensor, "n quantile"]:
        """Activations that a share QUANTILES of these features' activations above zero does not exceed.

        The q-quantile of n values is the one of rank ceil(q n).
        """
        counts = self._histogram.view(-1, N_BINS)[features].cumsum(dim=1)  # (n, bins)
        shares = torch.tensor(QUANTILES, dtype=torch.float64)
        # 0.1 * 30 is a little above 3 in floating point; its rank is 3 all the same.
        ranks = (shares * self.n_active[features, None] - 1e-9).ceil().long().clamp(min=1)
        bins = torch.searchsorted(counts, ranks)  # (n, quantile)
        middles = torch.exp2((bins + 0.5) / BINS_PER_OCTAVE + LOWEST_OCTAVE)
        return middles.clamp(self.smallest[features, None], self.largest[features, None])
