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
from circuitcli.saes.base import SparseCoder, strongest
from circuitcli.saes.splice import Edit, splice
from circuitcli.validation.circuits import circuit_edit, kept_nodes

Strongest = Mapping[HookPoint, Float[Tensor, "text d_sae"]]


@dataclass(frozen=True)
class Without:
    """Runs of prompts without some nodes, beside the clean runs.

    logits: at the positions that were asked for. before, after: activations at each hook point behind the first of
    those that are read, where each feature is furthest from zero.
    """

    metric: Float[Tensor, " text"]
    logits: Float[Tensor, "text position vocab"]
    before: Strongest
    after: Strongest


def without(
    subject: Subject,
    nodes: Iterable[NodeId],
    baseline: Baseline,
    *,
    later: Mapping[HookPoint, SparseCoder],
    where: Bool[Tensor, "text position"] | None = None,
    positions: slice = slice(None),
) -> Without:
    """Run with these nodes at baseline.

    later: coders that are only looked at. where: the positions at which nodes may be taken away, of those that carry
    nodes; None for all. positions: those whose logits are wanted.
    """
    seen: dict[HookPoint, Tensor] = {}
    ablate = _ablation(subject, nodes, baseline, where=where)

    def codes_of(hook: HookPoint, codes: Tensor) -> Tensor | None:
        seen[hook] = codes
        return ablate.codes(hook, codes)

    looked = _Looked(later, subject.first)
    with torch.no_grad():
        spliced = splice(subject.coders, Edit(codes_of, ablate.error), first=subject.first)
        residual = subject.run(_both(spliced, looked.taps()))
        metric = subject.metric.value(subject.adapter.head(residual[:, subject.metric.positions]))
        after = {hook: _strongest(codes) for hook, codes in seen.items()} | looked.strongest()
        if later:
            # A run that is not edited gives what the later coders read in the clean one.
            subject.run(looked.taps())
        before = {hook: _strongest(subject.codes[hook]) for hook in seen} | looked.strongest()
        logits = subject.adapter.head(residual[:, positions])
    first = min(subject.coders)
    return Without(
        metric=metric,
        logits=logits,
        before={hook: value for hook, value in sorted(before.items()) if first < hook},
        after={hook: value for hook, value in sorted(after.items()) if first < hook},
    )


def _both(spliced: Mapping[HookPoint, Callback], looking: Mapping[HookPoint, Callback]) -> dict[HookPoint, Callback]:
    """Taps of both, of one hook point what arrives being looked at first."""

    def after(look: Callback, edit: Callback) -> Callback:
        def both(x: Tensor) -> Tensor | None:
            look(x)
            return edit(x)

        return both

    taps = {**looking, **spliced}
    return {
        hook: after(looking[hook], spliced[hook]) if hook in looking and hook in spliced else tap
        for hook, tap in taps.items()
    }


def _strongest(codes: Float[Tensor, "text position d_sae"]) -> Float[Tensor, "text d_sae"]:
    return strongest(codes.transpose(0, 1))


def _ablation(
    subject: Subject, nodes: Iterable[NodeId], baseline: Baseline, *, where: Bool[Tensor, "text position"] | None
) -> Edit:
    """The edit that takes nodes to their baseline, at these positions."""
    gone, device = kept_nodes(subject, nodes), subject.adapter.device
    keeps = torch.zeros(1, subject.n_spliced, dtype=torch.bool, device=device) if where is None else ~where.to(device)
    return circuit_edit(
        baseline,
        keeps_code=lambda hook: ~gone.features[hook] | keeps[..., None],
        keeps_error=lambda hook: ~gone.errors[hook] | keeps,
        texts=torch.arange(subject.n_texts, device=device),
    )


class _Looked:
    """Taps that look at hook points with coders, and change nothing."""

    def __init__(self, coders: Mapping[HookPoint, SparseCoder], first: int) -> None:
        self.coders, self.first = coders, first
        self.seen: dict[HookPoint, Tensor] = {}

    def taps(self) -> dict[HookPoint, Callback]:
        """One for each hook point."""
        return {hook: self._tap(hook) for hook in self.coders}

    def _tap(self, hook: HookPoint) -> Callback:
        coder = self.coders[hook]

        def look(x: Tensor) -> None:
            self.seen[hook] = _strongest(coder.encode(x[:, self.first :].to(coder.W_enc)))

        return look

    def strongest(self) -> dict[HookPoint, Tensor]:
        """What was seen in the run before."""
        return dict(self.seen)
