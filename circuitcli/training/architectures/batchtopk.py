"""BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): k active features per token on average, more where needed.

In use there is no batch: after training one threshold is set for all features, which leaves k of them active per token
on average, and the SAE is kept as a JumpReLU one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.selection import BatchTopK, Selection
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.relu import ReluSae
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import Batch, BuildInputs
from circuitcli.training.takeover import one_threshold


class ThresholdMeter:
    """Finds the threshold above which k pre-activations per token lie, from some tokens in several pieces."""

    def __init__(self, k: int, *, n_tokens: int) -> None:
        """n_tokens: of all pieces together, at most."""
        self._k, self._n_tokens, self._n_seen = k, n_tokens, 0
        # The largest pre-activations so far, as many as could be needed.
        self._largest = torch.empty(0)

    def update(self, pre: Float[Tensor, "token d_sae"]) -> None:
        """Take in the pre-activations of some tokens."""
        self._n_seen += len(pre)
        largest = torch.cat([self._largest.to(pre.dtype), pre[pre > 0].cpu()])
        # One more than may stay active: the threshold lies between that one and the last that does.
        self._largest = largest.topk(min(self._k * self._n_tokens + 1, len(largest))).values

    def threshold(self) -> float:
        """For the tokens so far."""
        n_active = self._k * self._n_seen
        return float(self._largest[n_active - 1 : n_active + 1].mean()) if len(self._largest) > n_active else 0.0


class TrainableBatchTopK(TrainableTopK):
    """Its codes are the k * batch largest pre-activations of the batch."""

    needs_calibration = True
    threshold: float | None = None
    _meter: ThresholdMeter | None = None

    def selection(self) -> Selection:
        """See `TrainableTopK`."""
        return BatchTopK(self.config.sae.k, self.ranks if self.ranks.n > 1 else None)

    @torch.no_grad()
    def calibrate(self, batch: Batch, *, n_tokens: int) -> None:
        """See `Trainable`: the threshold above which k pre-activations per token lie."""
        sae = self.sae
        self._meter = self._meter or ThresholdMeter(self.config.sae.k, n_tokens=n_tokens)
        for rows in self.scaled(batch[sae.hook], self.scale).split(sae.rows_at_once):
            self._meter.update(sae.pre_activations(rows))
        self.threshold = self._meter.threshold()

    @torch.no_grad()
    def taken(self, coder: SparseCoder) -> SparseCoder:
        """See `TrainableCoder`. The threshold holds until another is set."""
        self.threshold = one_threshold(coder)
        sae = ReluSae(coder.config).to(coder.b_enc.device)
        for name, parameter in sae.named_parameters():
            parameter.data = getattr(coder, name).detach()
        return sae

    def inference(self) -> SparseCoder:
        """See `TrainableCoder`. Needs `calibrate`."""
        assert self.threshold is not None
        sae = JumpReluSae(self.sae.config).to(self.sae.W_enc.device)
        sae.load_state_dict(self.sae.state_dict() | {"threshold": torch.full((self.sae.d_sae,), self.threshold)})
        return sae


def build(inputs: BuildInputs) -> TrainableBatchTopK:
    """Untrained, from settings and first activations."""
    return build_single(TrainableBatchTopK, ReluSae, inputs)
