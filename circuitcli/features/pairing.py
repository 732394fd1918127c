"""Which features of two coders are paired, by how alike they are; dead ones are listed apart."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.evaluation.assignment import best_assignment

Assignment = Literal["hungarian", "greedy", "best"]
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Pairs:
    """Features of ``source`` and ``target`` that are paired, and the cosine of each pair, by feature of the target.

    Only live features are paired. dead_source, dead_target: those that are not, in numbers of their own coder. What is
    live and in no pair had no partner left.
    """

    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    cosine: Float[Tensor, " pair"]
    dead_source: Int[Tensor, " dead_source"]
    dead_target: Int[Tensor, " dead_target"]
    n_source: int
    n_target: int

    @property
    def n_live_source(self) -> int:
        """Number of live features of the source."""
        return self.n_source - len(self.dead_source)

    @property
    def n_live_target(self) -> int:
        """Number of live features of the target."""
        return self.n_target - len(self.dead_target)

    def n_within(self, distance: float) -> int:
        """How many features of the target have a partner at a distance (1 - cosine) below this."""
        return int((1 - self.cosine < distance).sum())

    def n_alike(self, cosine: float) -> int:
        """How many features of the target have a partner that is so alike."""
        return int((self.cosine >= cosine).sum())

    def listed(self, cosine: float) -> list[tuple[int, int, float]]:
        """(source, target, cosine) of the pairs that are so alike; of several with one source the most alike."""
        cosines = dict(zip(self.target.tolist(), self.cosine.tolist(), strict=True))
        return [(source, target, cosines[target]) for source, target in self.at_least(cosine).items()]

    def at_least(self, cosine: float) -> dict[int, int]:
        """Features of the target by those of the source, where they are so alike; of several the most alike."""
        kept = (self.cosine >= cosine).nonzero()[:, 0]
        order = kept[self.cosine[kept].argsort(stable=True)]
        return dict(zip(self.source[order].tolist(), self.target[order].tolist(), strict=True))


def paired(
    alike: Float[Tensor, "source target"],
    *,
    live_source: Bool[Tensor, " source"],
    live_target: Bool[Tensor, " target"],
    assignment: Assignment = "hungarian",
) -> Pairs:
    """Live features paired, by a matrix of cosines or correlations.

    hungarian: the one-to-one pairs with the largest sum; exact. greedy: the most alike pair first, then that of what is
    left. best: each feature of the target with the one of the source that is most like it, which others may have too.
    """
    sources, targets = live_source.nonzero()[:, 0], live_target.nonzero()[:, 0]
    scores = alike[sources][:, targets]
    if not scores.numel():
        rows = columns = torch.zeros(0, dtype=torch.long)
    elif assignment == "best":
        rows, columns = scores.argmax(dim=0), torch.arange(len(targets))
    elif assignment == "greedy":
        rows, columns = _greedy(scores)
    else:
        rows, columns = _hungarian(scores)
    order = columns.argsort()
    rows, columns = rows[order], columns[order]
    return Pairs(
        source=sources[rows],
        target=targets[columns],
        cosine=scores[rows, columns].double(),
        dead_source=(~live_source).nonzero()[:, 0],
        dead_target=(~live_target).nonzero()[:, 0],
        n_source=len(live_source),
        n_target=len(live_target),
    )


def _hungarian(scores: Float[Tensor, "row column"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    n_rows, n_columns = scores.shape
    if n_rows > n_columns:
        columns, rows = _hungarian(scores.T)
        return rows, columns
    found = best_assignment(np.asarray(scores))
    return torch.arange(n_rows), torch.from_numpy(found.astype(np.int64))


def _greedy(scores: Float[Tensor, "row column"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Pairs that are each other's best among what is left: but for ties exactly those that taking the largest entry,
    again and again, would make."""
    left_rows, left_columns = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    rows, columns = [], []
    while scores.numel():
        best_column, best_row = scores.argmax(dim=1), scores.argmax(dim=0)
        mutual = (best_row[best_column] == torch.arange(len(best_column))).nonzero()[:, 0]
        taken = best_column[mutual]
        rows.append(left_rows[mutual])
        columns.append(left_columns[taken])
        keep_rows, keep_columns = (torch.ones(n, dtype=torch.bool) for n in scores.shape)
        keep_rows[mutual], keep_columns[taken] = False, False
        scores = scores[keep_rows][:, keep_columns]
        left_rows, left_columns = left_rows[keep_rows], left_columns[keep_columns]
    return torch.cat(rows), torch.cat(columns)
