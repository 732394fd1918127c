"""Taking nodes away all at once, in one run, in model order, later codes recomputed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.taps import Callback
from circuitcli.saes.base import Coded, SparseCoder, strongest
from circuitcli.saes.splice import Change, Edit, splice
from circuitcli.validation.circuits import kept_nodes

Strongest = Mapping[HookPoint, Float[Tensor, " d_sae"]]


@dataclass(frozen=True)
class Without:
    """A run without some nodes, beside the clean run.

    before, after: activations at each hook point behind the first of them, where each feature is furthest from zero.
    """

    metric: float
    logits: Float[Tensor, "position vocab"]
    before: Strongest
    after: Strongest


def without(
    subject: Subject,
    nodes: Iterable[NodeId],
    baseline: Baseline,
    *,
    later: Mapping[HookPoint, SparseCoder],
    where: Bool[Tensor, " position"] | None = None,
) -> Without:
    """Run with these nodes at baseline.

    later: SAEs that are only looked at. where: the positions at which nodes may be taken away, of those that carry
    nodes; None for all.
    """
    seen: dict[HookPoint, Coded] = {}
    ablate = _ablation(subject, nodes, baseline, where=where)

    def edit(hook: HookPoint, coded: Coded) -> Change:
        seen[hook] = coded
        return ablate(hook, coded)

    codes = _Looked(later, subject.prompt.first)
    with torch.no_grad():
        taps = {**splice(subject.saes, edit, first=subject.prompt.first), **codes.taps()}
        logits = subject.logits(taps, rows=1)
        after = {hook: strongest(coded.codes[0]) for hook, coded in seen.items()} | codes.strongest()
        if later:
            # A run that is not edited gives what the later SAEs read in the clean one.
            subject.logits(codes.taps(), rows=1)
        before = {hook: strongest(subject.coded[hook].codes[0]) for hook in seen} | codes.strongest()
    first = min(subject.hooks)
    return Without(
        metric=float(subject.metric.value(logits)[0]),
        logits=logits[0],
        before={hook: value for hook, value in sorted(before.items()) if first < hook},
        after={hook: value for hook, value in sorted(after.items()) if first < hook},
    )


def _ablation(
    subject: Subject, nodes: Iterable[NodeId], baseline: Baseline, *, where: Bool[Tensor, " position"] | None
) -> Edit:
    """The edit that takes nodes to their baseline, at these positions."""
    gone = kept_nodes(subject, nodes)
    may = torch.ones(subject.prompt.n_spliced, dtype=torch.bool) if where is None else where
    keeps = ~may.to(subject.adapter.device)[:, None]

    def edit(hook: HookPoint, coded: Coded) -> Change:
        absent = baseline[hook]
        return Change(
            (absent.codes - coded.codes).masked_fill(~gone.features[hook] | keeps, 0.0),
            (absent.error - coded.error).masked_fill(~gone.errors[hook][:, None] | keeps, 0.0),
        )

    return edit


class _Looked:
    """Taps that look at hook points with SAEs, and change nothing."""

    def __init__(self, saes: Mapping[HookPoint, SparseCoder], first: int) -> None:
        self.saes, self.first = saes, first
        self.seen: dict[HookPoint, Tensor] = {}

    def taps(self) -> dict[HookPoint, Callback]:
        """One for each hook point."""
        return {hook: self._tap(hook) for hook in self.saes}

    def _tap(self, hook: HookPoint) -> Callback:
        def look(x: Tensor) -> None:
            self.seen[hook] = strongest(self.saes[hook].encode(x[:, self.first :].to(self.saes[hook].W_enc))[0])

        return look

    def strongest(self) -> dict[HookPoint, Tensor]:
        """What was seen in the run before."""
        return dict(self.seen)
