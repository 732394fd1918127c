"""Means over prompts, with standard errors and the share of prompts in which a value is not zero."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.panel import wide


@dataclass(frozen=True)
class Average:
    """A mean over prompts; standard error and share of the prompts in which it is not zero, None for one prompt."""

    value: float
    standard_error: float | None = None
    active: float | None = None


def average(values: Float[Tensor, " prompt"]) -> Average:
    """Of one value for each prompt."""
    count = len(values)
    values = wide(values)
    if count == 1:
        return Average(float(values[0]))
    spread = float(values.std() / count**0.5)
    return Average(float(values.mean()), spread, float((values != 0).double().mean()))


class Tally:
    """Sums of values of many nodes, with a row for each target, over prompts that come one after the other."""

    def __init__(self, n_targets: int, n_groups: int, n_nodes: int, device: torch.device) -> None:
        shape = (n_targets, n_groups, n_nodes)
        like = wide(torch.zeros(0, device=device))
        self.total, self.square = like.new_zeros(shape), like.new_zeros(shape)
        self.active = torch.zeros(shape, dtype=torch.int32, device=device)

    def add(
        self,
        features: slice,
        values: Float[Tensor, "row group width"],
        targets: Int[Tensor, " row"],
        *,
        least: float = 0.0,
    ) -> None:
        """Add rows, each of one prompt and one target; a value counts as active if its size is above ``least``."""
        values = wide(values)
        for sums, part in ((self.total, values), (self.square, values.square()), (self.active, values.abs() > least)):
            sums[..., features].index_add_(0, targets, part.to(sums))

    def mean(self, n_prompts: int) -> Float[Tensor, "target group node"]:
        """Means over all prompts; what was not added is zero."""
        return self.total / n_prompts

    def spread(self, n_prompts: int) -> Float[Tensor, "2 target group node"]:
        """Standard errors, and shares of the prompts in which a value is active."""
        mean = self.mean(n_prompts)
        variance = (self.square / n_prompts - mean.square()).clamp_min(0) * n_prompts / max(1, n_prompts - 1)
        return torch.stack([(variance / n_prompts).sqrt(), self.active.to(mean) / n_prompts])
