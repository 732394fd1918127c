"""How much of what was planted a coder has found: directions, and where each of its features is active.

As SynthSAEBench measures it (arXiv:2602.14687): a coder's feature is a detector of the planted feature whose direction
is most like its decoder row, and all that a coder has is counted, dead features too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.evaluation.assignment import best_assignment
from circuitcli.evaluation.quality import ReconstructionMeter
from circuitcli.saes.base import SparseCoder


@dataclass(frozen=True)
class Detection:
    """Means over detectors. precision: share of a detector's activity that is right; recall: share of the planted
    feature's activity that it sees; f1: their harmonic mean. What is never active has zeros."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Found:
    """What a coder has found, beside how it reconstructs.

    mcc: mean size of the cosine between decoder rows and planted directions, matched one to one so that it is largest
    (of the smaller side all are matched). uniqueness: different planted features that its features are most like, over
    its features. shrinkage: mean length of what is reconstructed over that of what is to be.
    """

    detection: Detection
    mcc: float
    uniqueness: float
    explained_variance: float | None
    l0: float
    silent: float
    shrinkage: float | None


class DetectionMeter:
    """Counts of each detector's rights and wrongs."""

    def __init__(self, n: int) -> None:
        self._right, self._said, self._true = (torch.zeros(n, dtype=torch.float64) for _ in range(3))

    def update(self, said: Bool[Tensor, "row detector"], true: Bool[Tensor, "row detector"]) -> None:
        """Count some rows."""
        self._right += (said & true).sum(dim=0)
        self._said += said.sum(dim=0)
        self._true += true.sum(dim=0)

    def of_each(self) -> Float[Tensor, "3 detector"]:
        """Precision, recall and F1 of each detector."""
        both = self._said + self._true
        return torch.stack(
            [
                self._right / self._said.clamp_min(1.0),
                self._right / self._true.clamp_min(1.0),
                2 * self._right / both.clamp_min(1.0),
            ]
        )

    def result(self) -> Detection:
        """Means over all detectors."""
        return Detection(*self.of_each().mean(dim=1).tolist())


def cosines(
    rows: Float[Tensor, "feature d"], directions: Float[Tensor, "planted d"]
) -> Float[Tensor, "feature planted"]:
    """Sizes of the cosines; rows of length zero have none."""
    return (F.normalize(rows.float(), dim=1) @ F.normalize(directions.float(), dim=1).T).abs_()


def mean_matched(similarity: Float[Tensor, "feature planted"]) -> float:
    """Mean of the entries that a one-to-one matching chooses so that their sum is largest."""
    if len(similarity) > similarity.shape[1]:
        similarity = similarity.T
    chosen = torch.from_numpy(best_assignment(similarity.cpu().numpy()))[:, None]
    return float(similarity.cpu().gather(1, chosen).double().mean())


@torch.no_grad()
def found(
    coder: SparseCoder,
    directions: Float[Tensor, "planted d"],
    batches: Iterable[tuple[Float[Tensor, "row d"], Bool[Tensor, "row planted"]]],
) -> Found:
    """Scores of a coder over batches of activations and of which planted features are active in them."""
    similarity = cosines(coder.W_dec, directions)
    nearest = similarity.argmax(dim=1)
    detection, quality = DetectionMeter(coder.d_sae), ReconstructionMeter(coder.d_out, coder.d_sae)
    for x, is_active in batches:
        codes = coder.encode(x)
        quality.update(x, coder.reconstruction(x, codes), codes)
        detection.update(codes != 0, is_active[:, nearest])
    made = quality.result()
    return Found(
        detection.result(),
        mean_matched(similarity),
        len(nearest.unique()) / coder.d_sae,
        made.explained_variance,
        made.l0,
        made.silent,
        made.l2_ratio,
    )
