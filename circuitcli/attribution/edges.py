"""Edges: what a node contributes to a later node along the direct path (Marks et al. 2024, arXiv:2403.19647).

Edge u -> d is the derivative of ``g_d * f_d`` (with ``g_d = dm/df_d`` held constant) by ``f_u`` along the paths that
avoid all other spliced hook points, times ``f_u - f0_u``. On that path every spliced hook point goes on with its clean
activation plus what u itself writes there plus what live skips carry. One forward pass of each text is enough: each
target is a vector at its ends (see `targets`), and one batched backward pass takes all of them to all sources.

Of integrated gradients the derivative is averaged over the straight path on which all sources of a target go from
their clean values to their baseline (Gauss-Legendre points), and codes follow pre-activations by the secant between
the two runs. So features that are silent in the clean run and active in the other have edges, and edges out of
saturated units and through attention scores do not vanish. **Identity**: the edges into d sum to ``g_d`` times what
``f_d`` changes by when all its sources go to their baseline along the direct path, up to the points of the path; those
into an error to ``g_x`` times what it changes by.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.direct import DirectRun, JointPath, ends_of, sources_of
from circuitcli.attribution.gradients import Effects, Gradients, GroupPath, effects_of
from circuitcli.attribution.subject import Subject
from circuitcli.attribution.targets import End, Target, TargetRows
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import first_block
from circuitcli.models.rules import applied
from circuitcli.saes.splice import shifted
from circuitcli.settings.graph import OF_ONE_GRADIENT

__all__ = ["DirectRun", "Incoming", "Taken", "Target", "ends_of", "incoming", "sources_of", "to_output"]


@dataclass(frozen=True)
class Taken:
    """How the derivatives of edges are taken: at the clean run, or with ``points`` as the mean over so many points of
    the path between the two runs; by the model's own backward pass, or by the rule of the method."""

    points: int = 0
    method: str = "atp"

    def shares(self) -> list[tuple[float, float]]:
        """Shares of the path with their weights."""
        if not self.points:
            return [(0.0, 1.0)]
        places, weights = numpy.polynomial.legendre.leggauss(self.points)
        return [(float(place + 1) / 2, float(weight) / 2) for place, weight in zip(places, weights, strict=True)]

    def applied(self, adapter: ModelAdapter) -> AbstractContextManager[None]:
        """While this is open, backward passes go by the rule."""
        return applied(adapter, self.method)


@dataclass(frozen=True)
class Incoming:
    """Weights of the edges into each row's target: from features by what is read, from errors by what is written."""

    features: Mapping[HookPoint, Contributions]
    errors: Mapping[HookPoint, Float[Tensor, "row position"]]


def incoming(
    subject: Subject,
    hook: HookPoint,
    rows: Sequence[tuple[int, Target]],
    effects: Mapping[HookPoint, Effects],
    baseline: Baseline,
    *,
    masks: Bool[Tensor, "text group spliced"],
    taken: Taken = Taken(),
    steps: Mapping[HookPoint, Float[Tensor, "text spliced d_model"]] | None = None,
    values: Float[Tensor, " row"] | None = None,
) -> Incoming | None:
    """Edges into targets that a hook point names, each of one text; None if nothing has a path to them.

    rows: text and target of each. effects: at least of the group that the targets are in. masks: the positions of each
    group. steps: `joint_steps`, if they are known already. values: as of `TargetRows`.
    """
    kinds = {target.index is None for _, target in rows}
    ends = sorted({end for kind in kinds for end in ends_of(subject.coders, hook, is_error=kind)})
    sources = sources_of(subject.coders, ends)
    if not sources:
        return None
    device = subject.adapter.device
    texts = torch.tensor([text for text, _ in rows], device=device)
    groups = torch.tensor([target.group for _, target in rows], device=device)
    steps = steps if steps is not None or not taken.points else joint_steps(subject, baseline)
    start = min(first_block(source) for source in sources)
    runs = _Runs(subject, tuple(ends), start=start, taken=taken, steps=steps or {})
    targets = TargetRows(
        subject,
        hook,
        [target.index for _, target in rows],
        texts,
        masks[texts, groups],
        effects,
        reached=runs.reached() if taken.points else None,
        values=values,
    )
    gradients = runs.gradients(targets.vectors(), texts)
    return edges_from(subject, gradients, baseline, texts=texts) if gradients else None


@dataclass(frozen=True)
class _Runs:
    """The direct runs along which edges into some ends are taken."""

    subject: Subject
    ends: tuple[HookPoint, ...]
    start: int
    taken: Taken
    steps: Mapping[HookPoint, Float[Tensor, "text spliced d_model"]]

    def reached(self) -> dict[HookPoint, Float[Tensor, "text spliced d_in"]]:
        """What is at each end when all sources are at their baseline."""
        with torch.no_grad():
            run = self._run(torch.arange(self.subject.n_texts, device=self.subject.adapter.device), share=1.0)
        readers = [self.subject.coders[end] for end in self.ends if end in self.subject.coders]
        return {coder.hook: run.seen(coder.hook, going_on=coder.is_transcoder) for coder in readers}

    def gradients(
        self, vectors: Mapping[End, Float[Tensor, "row spliced d_model"]], texts: Int[Tensor, " row"]
    ) -> dict[HookPoint, Float[Tensor, "row spliced d_model"]]:
        """The vectors of each row, taken back to what is written at each hook point, the mean over the path."""
        own, which = texts.unique(return_inverse=True)
        slots = _slots(which)
        packed = {end: _packed(vector, which, slots) for end, vector in vectors.items()}
        totals: dict[HookPoint, Tensor] = {}
        for share, weight in self.taken.shares():
            with torch.enable_grad(), self.taken.applied(self.subject.adapter):
                products = self._run(own, share=share).products(packed)
            for hook, product in products.items():
                part = product[slots, which] * weight
                totals[hook] = totals[hook] + part if hook in totals else part
        return totals

    def _run(self, texts: Int[Tensor, " some"], *, share: float) -> DirectRun:
        run = JointPath(self.subject, texts, start=self.start, share=share, steps=self.steps)
        run.until(self.ends)
        return run


def joint_steps(subject: Subject, baseline: Baseline) -> dict[HookPoint, Float[Tensor, "text spliced d_model"]]:
    """At each written hook point what is taken off where all codes and errors go to their baseline."""
    steps: dict[HookPoint, Tensor] = {}
    for hook in subject.coders.written:
        step = subject.errors[hook] - baseline.errors[hook]
        for coder in subject.coders.writers(hook):
            difference = subject.codes[coder.hook] - baseline.codes[coder.hook]
            step = step + coder.change(difference, subject.coded.frames[coder.hook], hook=hook)
        steps[hook] = step
    return steps


def _slots(which: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The number of each row among those of its text."""
    order = which.argsort(stable=True)
    ordered = which[order]
    slots = torch.empty_like(which)
    slots[order] = torch.arange(len(which), device=which.device) - torch.searchsorted(ordered, ordered)
    return slots


def _packed(vector: Tensor, which: Tensor, slots: Tensor) -> Float[Tensor, "slot text spliced d_model"]:
    packed = vector.new_zeros(int(slots.max()) + 1, int(which.max()) + 1, *vector.shape[1:])
    packed[slots, which] = vector
    return packed


def edges_from(
    subject: Subject, gradients: Gradients, baseline: Baseline, *, texts: Int[Tensor, " row"] | None
) -> Incoming:
    """Edges from all nodes for gradients by what is written."""
    features = {
        hook: Contributions.of(subject, hook, baseline, gradients, texts=texts)
        for hook, coder in subject.coders.items()
        if any(place in gradients for place in coder.writes)
    }
    errors = {}
    for place, gradient in gradients.items():
        difference = subject.errors[place] - baseline.errors[place]
        if texts is not None and len(difference) > 1:
            difference = difference[texts]
        errors[place] = (gradient * difference).sum(dim=-1)
    return Incoming(features, errors)


def to_output(
    subject: Subject,
    effects: Mapping[HookPoint, Effects],
    baseline: Baseline,
    *,
    method: str,
    steps: int | Sequence[int],
    batch_size: int,
) -> dict[HookPoint, Effects]:
    """Edges to the output from every group with a direct path to it, as effects along that path.

    effects: of the groups that edges are wanted of. For integrated gradients the derivative is averaged over the path
    of the source's own group, in so many steps, or so many of each text.
    """
    sources = sources_of(subject.coders, None)
    edges: dict[HookPoint, Effects] = {}
    for hook in effects:
        places = [place for place in subject.coders[hook].writes if place in sources]
        if subject.coders[hook].writes == (subject.coders.written[-1],):
            # No other spliced hook point follows, so that all paths are direct.
            edges[hook] = effects[hook]
        elif places:
            path = GroupPath.of(subject, hook, baseline)
            held, at_clean = partial(_held_gradients, path), method in OF_ONE_GRADIENT
            with applied(subject.adapter, method):
                average = path.mean_gradients(steps=steps, batch_size=batch_size, at_clean=at_clean, gradients=held)
            reached = {place: average[place] for place in places if place in average and bool(average[place].any())}
            if reached:
                edges[hook] = effects_of(subject, hook, baseline, reached, None)
    return edges


class _HeldPath(DirectRun):
    """The direct run in which one group is at a share of its path to the baseline."""

    def __init__(self, path: GroupPath, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"]) -> None:
        super().__init__(path.subject, texts, start=path.start)
        self.path, self.shares = path, shares

    def value(self, hook: HookPoint) -> Float[Tensor, "row position d_model"]:
        """See `DirectRun`."""
        clean = super().value(hook)
        step = self.path.steps.get(hook)
        if step is None:
            return clean
        return shifted(clean, -self.shares[:, None, None] * step[self.texts], first=self.subject.first)


def _held_gradients(
    path: GroupPath, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"]
) -> dict[HookPoint, Float[Tensor, "row spliced d_out"]]:
    with torch.enable_grad():
        run = _HeldPath(path, shares, texts)
        return run.gradients(run.metric().sum())
