"""Learning from what the model then predicts, not from what the activations look like (Braun et al. 2024).

The loss of an SAE that stands alone at its hook point is KL(clean || spliced), in nats per prediction, and where
weights are given the share of the variance that is missed at its own hook point and at later ones. KL alone and KL with
later hook points are the "end-to-end" and "end-to-end with downstream reconstruction" of arXiv:2405.12241.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcli.evaluation.spliced import log_softmax, rows_at_once
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import Callback, keep
from circuitcli.training.architectures.trainable import Batch, Objective
from circuitcli.training.loss import missed_variance
from circuitcli.training.readings import Reading


@dataclass(frozen=True)
class EndToEnd(Objective):
    """What an SAE does to the model's predictions, and to later hook points.

    variances: of the raw activations at each collected hook point. downstream_weight: of the mean over those behind the
    SAE's own, the ones that it changes.
    """

    variances: Mapping[HookPoint, float]
    downstream_weight: float = 0.0
    local_weight: float = 0.0

    def losses(
        self,
        batch: Batch,
        hook: HookPoint,
        reconstruction: Float[Tensor, "row d_model"],
        *,
        fvu: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """See `Objective`. Rows that belong to no text can only be learned from locally."""
        if not isinstance(batch, Reading):
            return {"reconstruction": fvu}
        later = [other for other in self.variances if hook < other] if self.downstream_weight else []
        seen: dict[HookPoint, Tensor] = {}
        taps: dict[HookPoint, Callback] = {other: keep(seen, other) for other in later}
        final = batch.again(hook, reconstruction, taps)
        predicts = batch.predicts.to(final.device)
        losses = {"kl": head_kl(batch.adapter, batch.clean.final_residual[predicts], final[predicts])}
        if self.local_weight:
            losses["reconstruction"] = self.local_weight * fvu
        if later:
            missed = [
                missed_variance(batch[hook], batch.rows(seen[hook]), variance=self.variances[hook]) for hook in later
            ]
            losses["downstream"] = self.downstream_weight * torch.stack(missed).mean()
        return losses


def head_kl(
    adapter: ModelAdapter, clean: Float[Tensor, "prediction d_model"], edited: Float[Tensor, "prediction d_model"]
) -> Float[Tensor, ""]:
    """Mean KL(clean || edited) of what the model predicts from two last residuals, in nats; edited takes a gradient."""
    return _HeadKl.apply(edited, clean, adapter)


class _HeadKl(torch.autograd.Function):
    """The gradient is taken at once, piece by piece."""

    @staticmethod
    def forward(ctx: Any, edited: Tensor, clean: Tensor, adapter: ModelAdapter) -> Tensor:
        gradients, total = [], edited.new_zeros((), dtype=torch.promote_types(edited.dtype, torch.float32))
        n_rows = rows_at_once(adapter)
        for p_rows, q_rows in zip(clean.split(n_rows), edited.split(n_rows), strict=True):
            log_p = log_softmax(adapter.head(p_rows[None])[0])
            with torch.enable_grad():
                leaf = q_rows.detach().requires_grad_()
                log_q = log_softmax(adapter.head(leaf[None])[0])
                kl = (log_p.exp() * (log_p - log_q)).sum()
            gradients.append(torch.autograd.grad(kl, leaf)[0])
            total += kl.detach().to(total)
        ctx.save_for_backward(torch.cat(gradients) / len(edited))
        return total / len(edited)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient) * gradient, None, None
