"""Where what is not kept at a position takes its values from: rows of the text that are alike in what is kept, random
rows, the mean, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.panel import Kept
from circuitcli.attribution.search.codes import TextCodes
from circuitcli.settings.search import SearchSettings

# The largest kept features, of which a row must have one to be looked at.
_LARGEST = 16
# What is remembered of rows that are alike.
_KEPT_BYTES = 2**26


@dataclass(frozen=True)
class Sampler:
    """Rows for one hook point. name: of the hook point, which draws go by. weight: of the distance in position, times
    the length of a block; 0 does not look at positions."""

    settings: SearchSettings
    codes: TextCodes | None
    name: str
    weight: float
    length: int
    seed: int
    kept: Kept = field(default_factory=lambda: Kept(_KEPT_BYTES), compare=False, repr=False)

    @property
    def draws(self) -> bool:
        """Whether there is anything to draw: not for zeros and means."""
        return self.settings.by in ("nearest", "random")

    def samples(
        self, position: int, features: Sequence[int], values: Float[Tensor, " kept"], *, n: int, purpose: str
    ) -> Float[Tensor, "n d_sae"]:
        """Codes for a position at which these features keep these values; one row for zero and mean.

        Draws depend on the seed, the hook point, the position and the purpose alone: what is compared is drawn alike.
        """
        made = self._others(position, features, values, n=n, purpose=purpose)
        made[:, list(features)] = values.to(made)
        return made

    def _others(
        self, position: int, features: Sequence[int], values: Float[Tensor, " kept"], *, n: int, purpose: str
    ) -> Float[Tensor, "n d_sae"]:
        codes = self.codes
        assert codes is not None
        if self.settings.by == "zero":
            return torch.zeros(1, codes.d_sae)
        if self.settings.by == "mean":
            return codes.mean[None].clone()
        draw = self._generator(position, purpose)
        if self.settings.by == "nearest" and features:
            key = (position, tuple(features))
            rows = self.kept.take(key, lambda: self.nearest(position, features, values), lambda made: made.nbytes)
            if len(rows):
                return codes.dense(rows[_drawn(len(rows), n, draw)])
        among = self.kept.take(("position", position), lambda: self._among(position), lambda made: made.nbytes)
        return codes.dense(among[_drawn(len(among), n, draw)])

    def _among(self, position: int) -> Int[Tensor, " row"]:
        """Rows to draw from at random: those at the position, or, where it is of no account or has none, all."""
        codes = self.codes
        assert codes is not None
        if self.weight > 0 and bool((here := codes.at_position(position)).any()):
            return here.nonzero()[:, 0]
        return torch.arange(codes.n_rows)

    def nearest(self, position: int, features: Sequence[int], values: Float[Tensor, " kept"]) -> Int[Tensor, " row"]:
        """The rows that are nearest in what is kept, and in position, the nearest first; of equals the first.

        Distance: squared differences of codes, each as a share of the feature's largest, and that of positions.
        """
        codes = self.codes
        assert codes is not None
        wanted = values.double().cpu()
        scales = torch.maximum(codes.largest[list(features)].double(), wanted.abs())
        largest = set((wanted.abs()).argsort(descending=True, stable=True)[:_LARGEST].tolist())
        distances = torch.full((codes.n_rows,), float(((wanted / scales) ** 2).sum()), dtype=torch.float64)
        is_candidate = torch.zeros(codes.n_rows, dtype=torch.bool)
        for number, feature in enumerate(features):
            rows, found = codes.column(feature)
            value, scale = wanted[number], scales[number]
            distances[rows] += ((found.double() - value) / scale) ** 2 - (value / scale) ** 2
            if number in largest:
                is_candidate[rows] = True
        candidates = is_candidate.nonzero()[:, 0]
        near = distances[candidates]
        if self.weight > 0:
            near = near + (self.weight * (codes.positions[candidates] - position).double() / self.length) ** 2
        # A stable sort of the few that can be among the nearest: of equals the first row counts, whatever the order.
        count = min(self.settings.nearest, len(near))
        if not count:
            return candidates
        possible = (near <= near.kthvalue(count).values).nonzero()[:, 0]
        return candidates[possible[near[possible].argsort(stable=True)[:count]]]

    def _generator(self, position: int, purpose: str) -> torch.Generator:
        text = f"{self.seed} {self.name} {position} {purpose}"
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        return torch.Generator().manual_seed(number)


def _drawn(among: int, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Of so many numbers n different ones; where there are fewer, all of them and some again."""
    drawn = torch.randperm(among, generator=generator)[:n]
    if len(drawn) == n:
        return drawn
    return torch.cat([drawn, torch.randint(among, (n - len(drawn),), generator=generator)])
