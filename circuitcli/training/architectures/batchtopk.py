"""BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): k active features per token on average, more where needed.

In use there is no batch: after training one threshold is set for all features, which leaves k of them active per token
on average, and the SAE is kept as a JumpReLU one.
"""

import torch
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.selection import BatchTopK, Selection
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.relu import ReluSae
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import Batch, BuildInputs


class TrainableBatchTopK(TrainableTopK):
    """Its codes are the k * batch largest pre-activations of the batch."""

    needs_calibration = True
    threshold: float | None = None
    # The largest pre-activations of the batches that it was calibrated with, as many as could be needed.
    _largest: Tensor | None = None
    _n_seen = 0

    def selection(self) -> Selection:
        """See `TrainableTopK`."""
        return BatchTopK(self.config.sae.k, self.ranks if self.ranks.n > 1 else None)

    @torch.no_grad()
    def calibrate(self, batch: Batch, *, n_tokens: int) -> None:
        """Find the threshold above which k pre-activations per token lie."""
        sae, k = self.sae, self.config.sae.k
        for rows in self.scaled(batch[sae.hook], self.scale).split(sae.rows_at_once):
            pre = sae.pre_activations(rows).flatten()
            positive = pre[pre > 0].cpu()
            largest = positive if self._largest is None else torch.cat([self._largest, positive])
            # One more than may stay active: the threshold lies between that one and the last that does.
            self._largest = largest.topk(min(k * n_tokens + 1, len(largest))).values
        assert self._largest is not None
        self._n_seen += len(batch[sae.hook])
        n_kept = k * self._n_seen
        self.threshold = float(self._largest[n_kept - 1 : n_kept + 1].mean()) if len(self._largest) > n_kept else 0.0

    def inference(self) -> SparseCoder:
        """See `TrainableCoder`. Needs `calibrate`."""
        assert self.threshold is not None
        sae = JumpReluSae(self.sae.config).to(self.sae.W_enc.device)
        sae.load_state_dict(self.sae.state_dict() | {"threshold": torch.full((self.sae.d_sae,), self.threshold)})
        return sae


def build(inputs: BuildInputs) -> TrainableBatchTopK:
    """Untrained, from settings and first activations."""
    return build_single(TrainableBatchTopK, ReluSae, inputs)
