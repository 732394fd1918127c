"""What a feature does where it is strongest: the model on its own contexts with the feature taken away.

As of `saes.splice`: the feature's code is set to zero at all positions of a passage, all else that its coder decodes
stays, and so does the error. Nothing is encoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.features.lines import Context
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import tapped
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Edit, splice

# Tokens in front of a peak, and behind it, that the model reads.
BEFORE, BEHIND = 128, 8


@dataclass(frozen=True)
class Passage:
    """A text in which a feature is strongest at position ``peak``; ``first`` is the first position that is not BOS."""

    ids: tuple[int, ...]
    peak: int
    first: int


@dataclass(frozen=True)
class Change:
    """What ablating does to one passage, in nats: ``divergence`` is KL(clean || ablated) of the token behind the peak,
    ``loss`` how much worse the tokens from there on are predicted, on average; None where the text ends at the peak.

    following: the token behind the peak.
    """

    divergence: float
    loss: float | None
    following: int | None


@dataclass(frozen=True)
class Ablation:
    """What ablating a feature does on its own contexts, and which next tokens it makes more and less likely there.

    changes: context by context, in order; raised and lowered: (token, mean change of its probability), most first.
    """

    changes: tuple[Change, ...]
    raised: tuple[tuple[int, float], ...]
    lowered: tuple[tuple[int, float], ...]

    @property
    def divergence(self) -> float:
        """Mean over the contexts."""
        return sum(change.divergence for change in self.changes) / len(self.changes)

    @property
    def loss(self) -> float | None:
        """Mean over the contexts that go on behind their peak."""
        known = [change.loss for change in self.changes if change.loss is not None]
        return sum(known) / len(known) if known else None


class Passages:
    """Contexts of features as texts that the model reads, found in the cache that they are from."""

    def __init__(self, cache: ActivationCache) -> None:
        self.cache = cache
        self._block = cache.tokens(0, cache.n_tokens).block

    def of(self, context: Context) -> Passage | None:
        """The context as the model reads it; None if it does not tell where it is, or is not there."""
        if context.block is None or context.position is None:
            return None
        return self._at(context.block, context.position)

    def _at(self, block: int, position: int) -> Passage | None:
        start, stop = (int(torch.searchsorted(self._block, block, side=side)) for side in ("left", "right"))
        if start == stop:
            return None
        tokens = self.cache.text(start, stop).tokens
        places = torch.nonzero(tokens.position == position)[:, 0]
        if not len(places):
            return None
        place = int(places[0])
        begin = max(0, place - BEFORE)
        bos = [] if self.cache.bos_id is None else [self.cache.bos_id]
        ids = tokens.token[begin : place + BEHIND + 1].tolist()
        return Passage((*bos, *ids), place - begin + len(bos), len(bos))


@torch.no_grad()
def ablation(
    adapter: ModelAdapter, coder: SparseCoder, feature: int, passages: Sequence[Passage], *, n_top: int = 8
) -> Ablation | None:
    """What the model does without a feature on these passages, one after the other; None if there is none.

    Costs two forward passes of up to BEFORE + BEHIND tokens for each passage.
    """
    if not passages:
        return None
    changes, total = [], None
    for passage in passages:
        clean, ablated = (_log_probs(adapter, coder, feature, passage, ablates=one) for one in (False, True))
        changes.append(_change(clean, ablated, passage))
        moved = ablated[0].exp() - clean[0].exp()
        total = moved if total is None else total + moved
    assert total is not None
    mean = total / len(passages)
    return Ablation(tuple(changes), _most(mean, n_top), tuple((i, -v) for i, v in _most(-mean, n_top)))


def _log_probs(
    adapter: ModelAdapter, coder: SparseCoder, feature: int, passage: Passage, *, ablates: bool
) -> Float[Tensor, "position vocab"]:
    """Of the next tokens from the peak on."""

    def without(hook: HookPoint, codes: Tensor) -> Tensor:
        change = torch.zeros_like(codes)
        change[..., feature] = -codes[..., feature]
        return change

    taps = splice(Coders.of([coder]), Edit(codes=without), first=passage.first) if ablates else {}
    ids = torch.tensor([passage.ids], device=adapter.device)
    with tapped(adapter, taps):
        logits = adapter.logits(ids)[0, passage.peak :]
    return F.log_softmax(logits.float(), dim=-1)


def _change(clean: Float[Tensor, "position vocab"], ablated: Tensor, passage: Passage) -> Change:
    divergence = float((clean[0].exp() * (clean[0] - ablated[0])).sum())
    following = torch.tensor(passage.ids[passage.peak + 1 :], device=clean.device)
    if not len(following):
        return Change(divergence, None, None)
    worse = (clean - ablated)[: len(following)].gather(1, following[:, None])
    return Change(divergence, float(worse.mean()), int(following[0]))


def _most(change: Float[Tensor, " vocab"], n_top: int) -> tuple[tuple[int, float], ...]:
    best = change.topk(min(n_top, len(change)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((index, value) for index, value in pairs if value > 0)
