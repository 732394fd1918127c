"""BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): k active features per token on average, more where needed.

In use there is no batch: after training one threshold is set for all features, which leaves k of them active per token
on average, and the SAE is kept as a JumpReLU one.
"""

from collections.abc import Iterable

import torch

from circuitcli.saes.base import SparseAutoencoder
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.selection import BatchTopK, Selection
from circuitcli.training.architectures.student import Batch
from circuitcli.training.architectures.topk import TopKStudent


class BatchTopKStudent(TopKStudent):
    """Its codes are the k * batch largest pre-activations of the batch."""

    threshold: float | None = None

    def selection(self) -> Selection:
        """See `TopKStudent`."""
        return BatchTopK(self.lesson.sae.k, self.ranks if self.ranks.n > 1 else None)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Find the threshold above which k pre-activations per token lie."""
        sae, k = self.sae, self.lesson.sae.k
        largest, n_tokens = torch.empty(0), 0
        for batch in batches:
            pre = sae.pre_activations(self.scaled(batch[sae.hook], self.scale)).flatten()
            n_tokens += len(batch[sae.hook])
            # One more than are to stay active: the threshold lies between that one and the last that does.
            largest = torch.cat([largest, pre[pre > 0].cpu()])
            largest = largest.topk(min(k * n_tokens + 1, len(largest))).values
        self.threshold = float(largest[-2:].mean()) if len(largest) > k * n_tokens else 0.0

    def inference(self) -> SparseAutoencoder:
        """See `SingleStudent`. Needs `calibrate`."""
        assert self.threshold is not None
        made = JumpReluSae(self.sae.config).to(self.sae.W_enc.device)
        made.load_state_dict(self.sae.state_dict() | {"threshold": torch.full((self.sae.d_sae,), self.threshold)})
        return made
