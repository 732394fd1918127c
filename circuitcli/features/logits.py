"""Which tokens a feature makes more or less likely if it wrote straight to the logits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli import progress
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.saes.base import SparseCoder

# Features of a coder from which it is told how much a token is moved by any feature: a standard deviation of so many
# is known within 3 %.
N_BACKGROUND = 512
# Tokens looked at beyond those that are listed, for a few go the other way.
N_SPARE = 64
# Logits in memory at once at most (128 MiB).
MAX_LOGITS = 2**25
# Their activations are read by attention or the MLP and do not reach the logits by themselves.
SITES_OFF_THE_RESIDUAL = frozenset({"attn_in", "mlp_in"})
# What is written there is the stream itself, not what is added to it.
STREAM = frozenset({"embed", "resid_pre", "resid_mid", "resid"})


@dataclass(frozen=True)
class LogitEffects:
    """Promoted and suppressed tokens of features, the most telling first; effects as in `logit_effect`, in logits for
    each unit of activation.

    Where other features are known, a token tells as much as its effect is above, or below, theirs on the same token, in
    standard deviations: a token of a large unembedding is moved by every feature and tells of none.
    """

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


@dataclass(frozen=True)
class Background:
    """What features do to each token's logit in general: their mean effect, and a scale of what is much.

    The scale is the standard deviation of the effects, with that of the median token under it (both squared and added):
    tokens that nothing moves, as those which the model never saw, do not stand out by noise, and frequent words, which
    many features move, stay in the lists of those that move them most.
    """

    mean: Float[Tensor, " vocab"]
    scale: Float[Tensor, " vocab"]

    def telling(self, effects: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        """How far effects are from those of other features on the same token."""
        return (effects - self.mean) / self.scale


def background(adapter: ModelAdapter, coder: SparseCoder, *, vocab_size: int) -> Background | None:
    """What the features of a coder do to logits in general, from at most N_BACKGROUND of them, evenly spaced; None if
    they add nothing to the last residual."""
    n = min(coder.d_sae, N_BACKGROUND)
    rows = directions(coder, torch.arange(n) * coder.d_sae // n)
    return None if rows is None else background_of(adapter, rows, vocab_size=vocab_size)


def background_of(adapter: ModelAdapter, rows: Float[Tensor, "n d_model"], *, vocab_size: int) -> Background:
    """What these directions do to logits in general."""
    total = square = torch.zeros((), device=rows.device)
    for effects in _effects(adapter, rows, vocab_size=vocab_size):
        total, square = total + effects.sum(dim=0), square + effects.square().sum(dim=0)
    mean = total / len(rows)
    variance = (square / len(rows) - mean.square()).clamp(min=0)
    scale = (variance + variance.median()).sqrt()
    return Background(mean, torch.where(scale > 0, scale, 1.0))


def logit_effects(
    adapter: ModelAdapter,
    rows: Float[Tensor, "n d_model"],
    *,
    n_top: int,
    vocab_size: int,
    others: Background | None = None,
) -> LogitEffects:
    """The tokens, among the first ``vocab_size``, whose logits each of these directions raises and lowers most: by the
    effect itself, or by how far it is from that of ``others``."""
    raised: list[tuple[Tensor, Tensor]] = []
    lowered: list[tuple[Tensor, Tensor]] = []
    with progress.task("logit effects", total=len(rows), unit="features") as advance:
        for effects in _effects(adapter, rows, vocab_size=vocab_size):
            telling = effects if others is None else others.telling(effects)
            for found, sign in ((raised, 1), (lowered, -1)):
                found.append(_most(effects, telling, sign=sign, n_top=n_top))
            advance(len(effects))
    promoted, suppressed = ([torch.cat(part).cpu() for part in zip(*found, strict=True)] for found in (raised, lowered))
    return LogitEffects(*promoted, *suppressed)


def _effects(
    adapter: ModelAdapter, rows: Float[Tensor, "n d_model"], *, vocab_size: int
) -> Iterator[Float[Tensor, "part vocab"]]:
    """The effects of directions on each logit, some directions at a time."""
    for part in rows.split(max(1, MAX_LOGITS // vocab_size)):
        with torch.no_grad():
            effects = adapter.logit_effect(part)[:, :vocab_size]
        yield effects


def _most(
    effects: Float[Tensor, "n vocab"], telling: Float[Tensor, "n vocab"], *, sign: int, n_top: int
) -> tuple[Int[Tensor, "n top"], Float[Tensor, "n top"]]:
    """Tokens that are raised (or with -1 lowered) most tellingly, and their effects; those that go the other way,
    though others push them further, come after the rest of those looked at."""
    size = effects.shape[1]
    indices = telling.topk(min(n_top + N_SPARE, size), dim=1, largest=sign > 0).indices
    found = effects.gather(1, indices)
    order = (found * sign <= 0).long().argsort(dim=1, stable=True)[:, : min(n_top, size)]
    return indices.gather(1, order), found.gather(1, order)
