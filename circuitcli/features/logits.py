"""Which tokens a feature makes more or less likely if it wrote straight to the logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli import progress
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter

# Logits in memory at once at most (128 MiB).
MAX_LOGITS = 2**25
# Their activations are read by attention or the MLP and do not reach the logits by themselves.
SITES_OFF_THE_RESIDUAL = frozenset({"attn_in", "mlp_in"})


@dataclass(frozen=True)
class LogitEffects:
    """Strongest promoted and suppressed tokens of features, strongest first; effects as in `logit_effect`."""

    promoted: Int[Tensor, "n top"]
    promoted_effects: Float[Tensor, "n top"]
    suppressed: Int[Tensor, "n top"]
    suppressed_effects: Float[Tensor, "n top"]


def writes_to_residual(hook: HookPoint) -> bool:
    """Whether decoder directions of this hook point are directions of the residual stream."""
    return hook.site not in SITES_OFF_THE_RESIDUAL


def logit_effects(
    adapter: ModelAdapter, directions: Float[Tensor, "n d_model"], *, n_top: int, vocab_size: int
) -> LogitEffects:
    """The tokens, among the first ``vocab_size``, whose logits each direction raises and lowers most."""
    chunk = max(1, MAX_LOGITS // vocab_size)
    raised: list[torch.return_types.topk] = []
    lowered: list[torch.return_types.topk] = []
    with torch.no_grad(), progress.task("logit effects", total=len(directions), unit="features") as advance:
        for part in directions.split(chunk):
            effects = adapter.logit_effect(part)[:, :vocab_size]
            n_shown = min(n_top, effects.shape[1])
            raised.append(effects.topk(n_shown, dim=1))
            lowered.append(effects.topk(n_shown, dim=1, largest=False))
            advance(len(part))
    return LogitEffects(
        torch.cat([top.indices for top in raised]).cpu(),
        torch.cat([top.values for top in raised]).cpu(),
        torch.cat([top.indices for top in lowered]).cpu(),
        torch.cat([top.values for top in lowered]).cpu(),
    )
