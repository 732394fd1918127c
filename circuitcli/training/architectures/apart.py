"""TopK SAEs as wide as the steps of a staircase, which share nothing: what sharing is held against (SCALAR)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.saes.fast.sparse import Codes
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.architectures.several import TrainableCoders
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import BuildInputs, ForwardResult


class ChunkedTopK(TrainableTopK):
    """A TopK SAE whose features come in chunks of equal size, and which measures how many of each are active."""

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> ForwardResult:
        """See `TrainableTopK`."""
        assert self.chunk_features is not None
        result = super().decoded(codes, y)
        counts = torch.bincount(result.active // self.chunk_features, minlength=self.sae.d_sae // self.chunk_features)
        measures = {f"l0_step_{number}": count for number, count in enumerate((counts / len(y)).unbind())}
        return replace(result, measures=measures)


class TrainableApart(TrainableCoders):
    """SAEs that learn from the same batches, each for itself."""

    def __init__(self, coders: Sequence[ChunkedTopK]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(coders)

    @property
    def coders(self) -> list[ChunkedTopK]:
        """See `TrainableCoders`."""
        return [cast(ChunkedTopK, step) for step in self.steps]


def build(inputs: BuildInputs) -> TrainableApart:
    """Untrained SAEs, each as if it were alone."""
    coders = []
    for shape in DESCRIPTIONS[inputs.config.sae.architecture].layout.coders(inputs.hooks):
        config = replace(inputs.config, d_sae=shape.width * inputs.config.d_sae)
        coder = build_single(ChunkedTopK, TopKSae, replace(inputs, hooks=shape.reads, config=config))
        coder.chunk_features = inputs.config.d_sae
        coders.append(coder)
    return TrainableApart(coders)
