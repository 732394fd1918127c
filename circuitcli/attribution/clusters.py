"""Predictions of a text in groups of one kind each, by what the model has computed where it makes them.

A text holds many behaviours. Grouped by activations, as Michaud et al. 2023, arXiv:2303.13506, and Marks et al. 2024,
arXiv:2403.19647, find behaviours that nobody named, each group can be explained by a circuit of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.predictions import Prediction
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read
from circuitcli.progress import track

_ROUNDS = 50


def clustered(vectors: Float[Tensor, "row d"], n_clusters: int, *, seed: int) -> Int[Tensor, " row"]:
    """The group of each row, by k-means over directions; group 0 is the largest, of equals that of the first row.

    Rows of one direction are always together. There are fewer groups where rows have fewer directions.
    """
    from scipy.cluster.vq import kmeans2

    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    distinct, place = units.unique(dim=0, return_inverse=True)
    n_clusters = min(n_clusters, len(distinct))
    centres, _ = kmeans2(distinct.numpy(), n_clusters, iter=_ROUNDS, minit="++", rng=np.random.default_rng(seed))
    groups = torch.cdist(distinct, torch.from_numpy(centres)).argmin(dim=1)[place]
    ranked = sorted(set(groups.tolist()), key=lambda one: (-int((groups == one).sum()), groups.tolist().index(one)))
    number = {old: new for new, old in enumerate(ranked)}
    return torch.tensor([number[old] for old in groups.tolist()])


def vectors_of(
    predictions: Sequence[Prediction], model: LanguageModel, hook: HookPoint
) -> Float[Tensor, "prediction d_model"]:
    """The activation at a hook point, of the last token of each context."""
    found = []
    for one in track(predictions, "contexts to group", unit="contexts"):
        ids = torch.tensor([one.ids], device=model.adapter.device)
        with torch.no_grad():
            found.append(read(model.adapter, ids, None, [hook])[hook][0, -1].cpu().float())
    return torch.stack(found)
