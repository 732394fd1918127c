"""The processes that train one SAE together, each on its part of every batch."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


class Ranks:
    """One process; a stand-in for several, in which nothing needs to be sent."""

    n = 1
    rank = 0

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all processes, without a gradient."""
        return values.detach()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""

    def threshold(self, values: Float[Tensor, " values"], n: int) -> float:
        """The ``n * processes``-th largest of the values of all processes."""
        return float(values.topk(min(n, len(values))).values[-1])


class AllRanks(Ranks):
    """The processes of `torch.distributed`, which must be running."""

    def __init__(self) -> None:
        self.n, self.rank = dist.get_world_size(), dist.get_rank()

    def sum(self, values: Tensor) -> Tensor:
        """See `Ranks`."""
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def average(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks`. Sends all in one piece."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.n
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def threshold(self, values: Tensor, n: int) -> float:
        """See `Ranks`."""
        total = n * self.n
        # No process can contribute more than all, and all contribute equally many, as gathering wants.
        lengths = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in range(self.n)]
        dist.all_gather(lengths, torch.tensor(min(total, len(values)), device=values.device))
        longest = int(max(lengths))
        mine = values.new_full((longest,), -torch.inf)
        kept = min(total, len(values))
        mine[:kept] = values.topk(kept, sorted=False).values
        parts = [torch.empty_like(mine) for _ in range(self.n)]
        dist.all_gather(parts, mine)
        everything = torch.cat(parts)
        return float(everything.topk(min(total, len(everything))).values[-1])


ALONE = Ranks()
