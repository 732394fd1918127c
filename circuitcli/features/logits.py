"""Which tokens a feature makes more or less likely if it wrote straight to the logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli import progress
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.saes.base import SparseCoder

# Logits in memory at once at most (128 MiB).
MAX_LOGITS = 2**25
# Their activations are read by attention or the MLP and do not reach the logits by themselves.
SITES_OFF_THE_RESIDUAL = frozenset({"attn_in", "mlp_in"})
# What is written there is the stream itself, not what is added to it.
STREAM = frozenset({"embed", "resid_pre", "resid_mid", "resid"})


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


def written_to_residual(coder: SparseCoder) -> list[HookPoint]:
    """Of what a coder writes, the hook points by which its features reach the last residual on the direct path.

    All layers of a cross-layer transcoder count, for each adds to the stream. Where the stream itself is written, what
    was written before goes no further: it is part of what is written there.
    """
    written = sorted(hook for hook in coder.writes if writes_to_residual(hook))
    streams = [number for number, hook in enumerate(written) if hook.site in STREAM]
    return written[streams[-1] :] if streams else written


def directions(coder: SparseCoder, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"] | None:
    """What each feature adds to the last residual for each unit of its activation: the sum of its decoder rows of
    `written_to_residual`; None if it adds nothing."""
    total: Tensor | None = None
    for hook in written_to_residual(coder):
        decoder = coder.decoder(hook)
        rows = decoder[features.to(decoder.device)].float()
        total = rows if total is None else total + rows
    return total


def decoder_norms(coder: SparseCoder, features: Int[Tensor, " n"]) -> dict[str, Float[Tensor, " n"]] | None:
    """Length of each feature's decoder row at each hook point that the coder writes; None if that is only one."""
    if len(coder.writes) == 1:
        return None
    norms = {}
    for hook in coder.writes:
        # One decoder at a time: those of many layers may come from disk.
        decoder = coder.decoder(hook)
        norms[str(hook)] = decoder[features.to(decoder.device)].float().norm(dim=-1)
    return norms


def logit_effects(
    adapter: ModelAdapter, rows: Float[Tensor, "n d_model"], *, n_top: int, vocab_size: int
) -> LogitEffects:
    """The tokens, among the first ``vocab_size``, whose logits each of these directions raises and lowers most."""
    chunk = max(1, MAX_LOGITS // vocab_size)
    raised: list[torch.return_types.topk] = []
    lowered: list[torch.return_types.topk] = []
    with torch.no_grad(), progress.task("logit effects", total=len(rows), unit="features") as advance:
        for part in rows.split(chunk):
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
