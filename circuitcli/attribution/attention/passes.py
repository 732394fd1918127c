"""A run on the direct path that keeps what attention reads and adds in every block.

On the direct path every spliced hook point goes on with its clean activation, to which a leaf adds nothing, and with
what live skips carry there; in the frozen model attention patterns, the denominators of norms and the MLPs that no
coder writes are constants too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.rules import applied
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.splice import shifted

EMBED = HookPoint(0, "embed")


@dataclass
class DirectPass:
    """What one run of copies of texts left, as tensors that derivatives can be taken through.

    leaves: by what is written, spliced hook points and, where nothing shields it, the embedding. reads: what coders and
    attention read, after what is written there. arriving: what attention adds, before it is replaced where coders write
    it, and what autoencoders read.
    """

    texts: Int[Tensor, " row"]
    is_frozen: bool
    leaves: dict[HookPoint, Tensor] = field(default_factory=dict)
    reads: dict[HookPoint, Tensor] = field(default_factory=dict)
    arriving: dict[HookPoint, Tensor] = field(default_factory=dict)
    residual: Tensor | None = None


@contextmanager
def direct_pass(
    subject: Subject,
    texts: Int[Tensor, " row"],
    *,
    is_frozen: bool,
    start: int,
    stop: int | None = None,
    cuts_attention: bool = False,
    opens_embedding: bool = False,
) -> Iterator[DirectPass]:
    """Run copies of texts through blocks ``start`` to ``stop``; derivatives are taken while this is open.

    cuts_attention: what attention adds is constant, so that only paths along the stream are left. opens_embedding: the
    embedding is a leaf too.
    """
    made = DirectPass(texts, is_frozen)
    with torch.enable_grad(), applied(subject.adapter, "frozen" if is_frozen else "atp"):
        taps = _Taps(subject, made, cuts_attention=cuts_attention, opens_embedding=opens_embedding)
        made.residual = subject.run(taps.of_run(start, stop), texts=texts, start=start, stop=stop)
        yield made


class _Taps:
    """The taps of one run."""

    def __init__(self, subject: Subject, made: DirectPass, *, cuts_attention: bool, opens_embedding: bool) -> None:
        self.made, self.subject, self.coders = made, subject, subject.coders
        self.cuts_attention, self.opens_embedding = cuts_attention, opens_embedding

    def of_run(self, start: int, stop: int | None) -> dict[HookPoint, Callback]:
        """Those of a run through some blocks."""
        adapter = self.subject.adapter
        end = adapter.n_layers if stop is None else stop
        sites = ("attn_in", "attn", *(("mlp",) if self.made.is_frozen else ()))
        blocks = (HookPoint(layer, site) for layer in range(max(start, 0), end) for site in sites)
        hooks = {hook for hook in blocks if adapter.offers(hook)}
        hooks |= {hook for hook in self.coders.hooks if first_block(hook) >= start and hook.layer < end}
        hooks |= {EMBED} if self.opens_embedding else set()
        return {hook: self._tap(hook) for hook in sorted(hooks)}

    def _tap(self, hook: HookPoint) -> Callback:
        is_written = bool(self.coders.writers(hook)) or (hook == EMBED and self.opens_embedding)

        def callback(x: Tensor) -> Tensor | None:
            self.made.arriving[hook] = x
            is_constant = (hook.site == "mlp" and self.made.is_frozen) or (hook.site == "attn" and self.cuts_attention)
            going_on = self._held(hook, x) if is_written else x.detach() if is_constant else x
            self.made.reads[hook] = going_on
            return None if going_on is x else going_on

        return callback

    def _held(self, hook: HookPoint, x: Tensor) -> Tensor:
        clean = self.subject.clean.activations
        value = clean[hook][self.made.texts] if hook in clean else x
        self.made.leaves[hook] = held = leaf(value)
        for coder in self.coders.writers(hook):
            change = self._carried_change(coder, hook)
            held = held if change is None else shifted(held, change, first=self.subject.first)
        return held.to(x)

    def _carried_change(self, coder: SparseCoder, hook: HookPoint) -> Tensor | None:
        """What a skip carries to a hook point beyond what it carries in the clean run; None for nothing."""
        read = self.made.reads.get(coder.hook)
        if not coder.config.skip or read is None or not read.requires_grad:
            return None
        first = self.subject.first
        clean = self.subject.activation(coder.hook)[self.made.texts]
        return coder.skip((read.to(clean) - clean)[:, first:], hook)
