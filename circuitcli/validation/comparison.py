"""Two circuits of one behaviour: what they share, what makes one of the other, and which keeps more."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.validation.scores import LEAST_RANGE, Runs, Score


def difference(
    part: Float[Tensor, " prompt"], other: Float[Tensor, " prompt"], runs: Runs, *, bootstrap: int, seed: int
) -> Score:
    """How much more of the behaviour the first keeps than the other, with its bootstrap interval over prompts.

    Both are metrics of each prompt; the same prompts are drawn for both, so that what they have in common cancels.
    """
    value = float(runs.faithfulness(part) - runs.faithfulness(other))
    count = len(part)
    if count < 2 or bootstrap == 0:
        return Score(value, None, None)
    draws = torch.randint(count, (bootstrap, count), generator=torch.Generator().manual_seed(seed))
    spans = (runs.clean - runs.empty)[draws].mean(dim=1)
    if bool((spans.abs() < LEAST_RANGE).any()):
        return Score(value, None, None)
    ratios = (part - other)[draws].mean(dim=1) / spans
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, low, high)
