"""A run on the direct path that keeps what attention reads and adds in every block.

On the direct path every spliced hook point goes on with its clean activation, to which a leaf adds nothing, and with
what live skips carry there; in the frozen model attention patterns, the denominators of norms and the MLPs that no
coder writes are constants too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.rules import applied
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.splice import shifted

EMBED = HookPoint(0, "embed")


@dataclass(frozen=True)
class Backward:
    """How derivatives are taken: by a rule of the model's backward pass, in which patterns and denominators of norms
    may be constant (``is_frozen``), and with constant MLPs where no coder writes them (``holds_mlps``)."""

    rule: str
    is_frozen: bool = False
    holds_mlps: bool = False


FROZEN = Backward("frozen", is_frozen=True, holds_mlps=True)


@dataclass
class DirectPass:
    """What one run of copies of texts left, as tensors that derivatives can be taken through.

    leaves: by what is written, spliced hook points and the embedding. constants: MLPs that no coder writes, likewise,
    where they are opened. reads: what coders and
    attention read, after what is written there. arriving: what attention adds, before it is replaced where coders write
    it, and what autoencoders read.
    """

    leaves: dict[HookPoint, Tensor] = field(default_factory=dict)
    constants: dict[HookPoint, Tensor] = field(default_factory=dict)
    reads: dict[HookPoint, Tensor] = field(default_factory=dict)
    arriving: dict[HookPoint, Tensor] = field(default_factory=dict)
    residual: Tensor | None = None


@contextmanager
def direct_pass(
    subject: Subject,
    texts: Int[Tensor, " row"],
    *,
    backward: Backward = FROZEN,
    cuts_attention: bool = False,
    opens_constants: bool = False,
    values: Mapping[HookPoint, Float[Tensor, "text position d_model"]] | None = None,
) -> Iterator[DirectPass]:
    """Run copies of texts from the embedding on; what runs while this is open has the same derivatives.

    cuts_attention: what attention adds is constant, so that only paths along the stream are left. opens_constants:
    derivatives by constant MLPs can be taken. values: what spliced hook points go on with in place of their clean
    activations.
    """
    made = DirectPass()
    with torch.enable_grad(), applied(subject.adapter, backward.rule):
        taps = _Taps(subject, texts, made, backward, values=values or {})
        taps.constant |= {"attn"} if cuts_attention else set()
        taps.opens_constants = opens_constants
        made.residual = subject.run(taps.of_run(), texts=texts, start=-1)
        yield made


class _Taps:
    """The taps of one run."""

    def __init__(
        self,
        subject: Subject,
        texts: Int[Tensor, " row"],
        made: DirectPass,
        backward: Backward,
        *,
        values: Mapping[HookPoint, Tensor],
    ) -> None:
        self.subject, self.coders, self.texts, self.made = subject, subject.coders, texts, made
        self._values = {**subject.clean.activations, **values}
        # Sites whose activations are constant where no coder writes them.
        self.constant = {"mlp"} if backward.holds_mlps else set()
        self.opens_constants = False

    def of_run(self) -> dict[HookPoint, Callback]:
        """Those of a run from the embedding on."""
        adapter = self.subject.adapter
        sites = {"attn_in", "attn", *self.constant}
        blocks = (HookPoint(layer, site) for layer in range(adapter.n_layers) for site in sites)
        hooks = {EMBED, *self.coders.hooks, *(hook for hook in blocks if adapter.offers(hook))}
        return {hook: self._tap(hook) for hook in sorted(hooks)}

    def _tap(self, hook: HookPoint) -> Callback:
        is_written = hook == EMBED or bool(self.coders.writers(hook))

        def callback(x: Tensor) -> Tensor | None:
            self.made.arriving[hook] = x
            going_on = (
                self._held(hook, x) if is_written else self._constant(hook, x) if hook.site in self.constant else x
            )
            self.made.reads[hook] = going_on
            return None if going_on is x else going_on

        return callback

    def _constant(self, hook: HookPoint, x: Tensor) -> Tensor:
        if not self.opens_constants:
            return x.detach()
        self.made.constants[hook] = leaf(x)
        return self.made.constants[hook]

    def _held(self, hook: HookPoint, x: Tensor) -> Tensor:
        value = self._values[hook][self.texts] if hook in self._values else x
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
        clean = self.subject.activation(coder.hook)[self.texts]
        return coder.skip((read.to(clean) - clean)[:, first:], hook)
