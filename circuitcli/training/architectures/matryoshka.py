"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv:2503.17547): nested prefixes of the features reconstruct alone.

The first features must so learn what matters most, and general features are not split up by special ones.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.fast.sparse import Codes, decode
from circuitcli.saes.relu import ReluSae
from circuitcli.training.architectures.batchtopk import TrainableBatchTopK
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.trainable import BuildInputs, ForwardResult
from circuitcli.training.loss import missed_variance


class TrainableMatryoshka(TrainableBatchTopK):
    """Its loss is the mean over the prefixes of the variance that each misses."""

    def edges(self) -> list[int]:
        """Where the prefixes end, after 0."""
        widths = [max(1, round(share * self.sae.d_sae)) for share in self.config.sae.prefixes]
        return [0, *sorted({*widths, self.sae.d_sae})]

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> ForwardResult:
        """See `TrainableTopK`. Each prefix adds to the one before, so all cost no more than the last."""
        reconstruction = self.sae.b_dec.expand_as(y)
        missed = []
        for first, stop in pairwise(self.edges()):
            reconstruction = reconstruction + decode(codes.part(first, stop), self.sae.W_dec[first:stop])
            missed.append(missed_variance(y, reconstruction, variance=self.variance))
        return ForwardResult(reconstruction, codes.active(), losses={"reconstruction": torch.stack(missed).mean()})


def build(inputs: BuildInputs) -> TrainableMatryoshka:
    """Untrained, from settings and first activations."""
    return build_single(TrainableMatryoshka, ReluSae, inputs)
