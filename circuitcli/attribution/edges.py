"""Edges: what a node contributes to a later node along the direct path (Marks et al. 2024, arXiv:2403.19647).

Edge u -> d is the derivative of ``g_d * f_d`` (with ``g_d = dm/df_d`` held constant) by ``f_u`` along the paths that
avoid all other spliced hook points, times ``f_u - f0_u``. On that path every spliced hook point goes on with its clean
activation plus what u itself writes there plus what live skips carry. So each is replaced by its clean value with a
leaf added; one backward pass from many targets, a row for each, then gives the direct derivatives by all sources at
once. Into an error node, ``g_x . e`` with ``e = x - decode(f) - skips``: ``x`` as it arrives, and every ``f`` and skip
that is taken off following its own read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.gradients import Effects, Gradients, GroupPath, effects_of
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.rules import applied
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Encoded, error_of, shifted
from circuitcli.settings.graph import OF_ONE_GRADIENT

# Everything that comes later in the model goes through these.
FULL_STREAM = frozenset({"embed", "resid_pre", "resid_mid", "resid"})


@dataclass(frozen=True)
class Target:
    """A node that edges lead to: feature ``index`` (None: the error), at a group of positions."""

    index: int | None
    group: int = 0


@dataclass(frozen=True)
class Incoming:
    """Weights of the edges into each row's target: from features by what is read, from errors by what is written."""

    features: Mapping[HookPoint, Contributions]
    errors: Mapping[HookPoint, Float[Tensor, "row position"]]


def ends_of(coders: Coders, hook: HookPoint, *, is_error: bool) -> tuple[HookPoint, ...]:
    """What a target of this name is computed from: what a coder reads, or what is written and all that its coders
    read."""
    if not is_error:
        return (hook,)
    return tuple(sorted({hook, *(coder.hook for coder in coders.writers(hook))}))


def sources_of(coders: Coders, ends: Iterable[HookPoint] | None) -> list[HookPoint]:
    """Written hook points that may have a direct path to these ends of a target (None: to the output), in model order.

    The last one that the whole stream passes through shields an end from all before it, but for what skips carry past.
    """
    reached: set[HookPoint] = set()
    waiting: list[HookPoint | None] = [None] if ends is None else list(ends)
    seen: set[HookPoint | None] = set()
    while waiting:
        end = waiting.pop()
        if end in seen:
            continue
        seen.add(end)
        for place in _near(coders, end):
            reached.add(place)
            waiting += [coder.hook for coder in coders.writers(place) if coder.config.skip]
    return sorted(reached)


def _near(coders: Coders, end: HookPoint | None) -> list[HookPoint]:
    """The written hook points before an end that the stream reaches it from."""
    before = [place for place in coders.written if end is None or place < end or _goes_on(coders, place, end)]
    walls = [number for number, place in enumerate(before) if place.site in FULL_STREAM]
    return before[walls[-1] :] if walls else before


def _goes_on(coders: Coders, place: HookPoint, end: HookPoint) -> bool:
    """Whether what is written at a hook point is read there: by all coders but autoencoders."""
    return place == end and end in coders and coders[end].is_transcoder


def incoming(
    subject: Subject,
    hook: HookPoint,
    rows: Sequence[tuple[int, Target]],
    effects: Mapping[HookPoint, Effects],
    baseline: Baseline,
    *,
    masks: Bool[Tensor, "text group spliced"],
) -> Incoming | None:
    """Edges into targets that a hook point names, each of one text; None if nothing has a path to them.

    rows: text and target of each. effects: at least of the group that the targets are in. masks: the positions of each
    group.
    """
    kinds = {target.index is None for _, target in rows}
    ends = sorted({end for kind in kinds for end in ends_of(subject.coders, hook, is_error=kind)})
    sources = sources_of(subject.coders, ends)
    if not sources:
        return None
    texts = torch.tensor([text for text, _ in rows], device=subject.adapter.device)
    with torch.enable_grad():
        direct = DirectRun(subject, texts, start=min(first_block(source) for source in sources))
        direct.until(ends)
        groups = torch.tensor([target.group for _, target in rows], device=masks.device)
        values = _Targets(direct, hook, [target.index for _, target in rows], effects, masks[texts, groups]).values()
        if not values.requires_grad:
            return None
        gradients = direct.gradients(values.sum())
    return edges_from(subject, gradients, baseline, texts=texts)


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


class DirectRun:
    """Copies of the texts on the direct path: every spliced hook point from block ``start`` on goes on with its clean
    activation, to which a leaf adds nothing, and with what live skips carry there.

    arriving, going_on: what the ends of targets see, at the spliced positions.
    """

    def __init__(self, subject: Subject, texts: Int[Tensor, " row"], *, start: int) -> None:
        self.subject, self.texts, self.start = subject, texts, start
        self.leaves: dict[HookPoint, Tensor] = {}
        self.arriving: dict[HookPoint, Tensor] = {}
        self.going_on: dict[HookPoint, Tensor] = {}

    def until(self, ends: Sequence[HookPoint]) -> None:
        """Run until the last of these hook points, and keep what is there."""
        last = max(ends)
        places = [hook for hook in {*self.subject.coders.hooks, *ends} if self._meets(hook) and hook <= last]
        stop = last.layer + 1 if self.start >= 0 else None
        taps = {hook: self._tap(hook, keeps=hook in ends) for hook in places}
        self.subject.run(taps, texts=self.texts, start=self.start, stop=stop)

    def seen(self, hook: HookPoint, *, going_on: bool = False) -> Float[Tensor, "row spliced d_model"]:
        """What arrived at an end, or went on from it; where the run did not begin early enough, what does in the clean
        run."""
        values = (self.going_on if going_on else self.arriving).get(hook)
        return self._spliced(self.subject.activation(hook))[self.texts] if values is None else values

    def metric(self) -> Float[Tensor, " row"]:
        """The metric of each row."""
        taps = {hook: self._tap(hook, keeps=False) for hook in self.subject.coders.hooks if self._meets(hook)}
        return self.subject.metric_of(taps, texts=self.texts, start=self.start)

    def _meets(self, hook: HookPoint) -> bool:
        return first_block(hook) >= self.start

    def _tap(self, hook: HookPoint, *, keeps: bool) -> Callback:
        reader = self.subject.coders.get(hook)
        is_written = bool(self.subject.coders.writers(hook))

        def callback(x: Tensor) -> Tensor | None:
            held = self._held(hook, x) if is_written else None
            if keeps:
                self.arriving[hook] = self._spliced(x)
            if keeps or (reader is not None and reader.config.skip):
                self.going_on[hook] = self._spliced(x if held is None else held)
            return held

        return callback

    def _spliced(self, x: Tensor) -> Tensor:
        return x[:, self.subject.first :].to(next(iter(self.subject.coders.values())).W_enc)

    def _held(self, hook: HookPoint, x: Tensor) -> Tensor:
        self.leaves[hook] = held = leaf(self.value(hook))
        for coder in self.subject.coders.writers(hook):
            change = self._carried_change(coder, hook)
            held = held if change is None else shifted(held, change, first=self.subject.first)
        return held.to(x)

    def value(self, hook: HookPoint) -> Float[Tensor, "row position d_model"]:
        """What a written hook point goes on with but for skips."""
        return self.subject.activation(hook)[self.texts]

    def _carried_change(self, coder: SparseCoder, hook: HookPoint) -> Tensor | None:
        """What a skip carries to a hook point beyond what it carries in the clean run; None for nothing."""
        read = self.going_on.get(coder.hook)
        if not coder.config.skip or read is None or not read.requires_grad:
            return None
        clean = self._spliced(self.subject.activation(coder.hook))[self.texts]
        return coder.skip(read - clean, hook)

    def gradients(self, value: Float[Tensor, ""]) -> dict[HookPoint, Float[Tensor, "row spliced d_model"]]:
        """Derivative of a value by what is written at each hook point; those without a path to it are left out."""
        if not value.requires_grad:
            return {}
        gradients = torch.autograd.grad(value, list(self.leaves.values()), allow_unused=True)
        return {
            hook: gradient[:, self.subject.first :]
            for hook, gradient in zip(self.leaves, gradients, strict=True)
            if gradient is not None
        }


class _Targets:
    """``g_d f_d`` of each feature target and ``g_x . e`` of each error target, in its own row, over its positions."""

    def __init__(
        self,
        direct: DirectRun,
        hook: HookPoint,
        indices: Sequence[int | None],
        effects: Mapping[HookPoint, Effects],
        where: Bool[Tensor, "row spliced"],
    ) -> None:
        self.coders, self.hook, self.indices = direct.subject.coders, hook, indices
        self._direct, self._effects = direct, effects
        # The codes of other positions are not needed, and of a wide coder they would be most of the memory.
        self._at = where.to(torch.uint8).argmax(dim=1) if needs_one_position(self.coders, hook, where) else None
        self.where = self._chosen(where[..., None])[..., 0]
        self._encoded: dict[HookPoint, Encoded] = {}
        self._slopes: dict[tuple[HookPoint, HookPoint], Tensor] = {}

    def _chosen(self, values: Tensor) -> Tensor:
        """Values (row, spliced, ...) at the positions that are needed."""
        if self._at is None:
            return values
        return values[torch.arange(len(values), device=values.device), self._at.to(values.device)][:, None]

    def values(self) -> Float[Tensor, " row"]:
        """One value for each row."""
        device = self.where.device
        features = [row for row, index in enumerate(self.indices) if index is not None]
        errors = [row for row, index in enumerate(self.indices) if index is None]
        parts = []
        if features:
            indices = torch.tensor([self.indices[row] or 0 for row in features], device=device)
            parts.append(self._of_features(torch.tensor(features, device=device), indices))
        if errors:
            parts.append(self._of_errors(torch.tensor(errors, device=device)))
        order = torch.tensor([*features, *errors], device=device).argsort()
        return torch.cat(parts)[order]

    def _of_features(self, rows: Int[Tensor, " some"], indices: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        read, coder = self._read(self.hook), self.coders[self.hook]
        slopes = torch.stack(
            [
                torch.einsum("rpd,rd->rp", self._gradient(self.hook, place)[rows], coder.decoder(place)[indices])
                for place in self._effects[self.hook].gradients
            ]
        ).sum(dim=0)
        slopes = slopes if read.frame is None else slopes * read.frame.scale[rows, :, 0]
        return (slopes * read.codes[rows, :, indices] * self.where[rows]).sum(dim=1)

    def _of_errors(self, rows: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        slopes = self._gradient(self.coders.group_of_error(self.hook), self.hook)[rows]
        return ((slopes * self._error[rows]).sum(dim=-1) * self.where[rows]).sum(dim=1)

    def _gradient(self, group: HookPoint, place: HookPoint) -> Float[Tensor, "row position d_out"]:
        """The metric's, by what is written at a place, as the effects of the group come from it."""
        if (group, place) not in self._slopes:
            self._slopes[group, place] = self._chosen(self._effects[group].gradients[place][self._direct.texts])
        return self._slopes[group, place]

    def _read(self, hook: HookPoint) -> Encoded:
        if hook not in self._encoded:
            coder = self.coders[hook]
            x = self._chosen(self._direct.seen(hook, going_on=coder.is_transcoder))
            codes, frame = coder.encode_framed(x)
            self._encoded[hook] = Encoded(x, codes, frame, None)
        return self._encoded[hook]

    @cached_property
    def _error(self) -> Float[Tensor, "row position d_out"]:
        writers = self.coders.writers(self.hook)
        for coder in writers:
            self._read(coder.hook)
        return error_of(writers, self.hook, self._chosen(self._direct.seen(self.hook)), self._encoded)


def needs_one_position(coders: Coders, hook: HookPoint, where: Bool[Tensor, "row spliced"]) -> bool:
    """Whether what each target is comes from the activations at one position alone."""
    readers = [*coders.writers(hook), *((coders[hook],) if hook in coders else ())]
    return not any(coder.reads_context for coder in readers) and bool((where.sum(dim=1) == 1).all())


def to_output(
    subject: Subject,
    effects: Mapping[HookPoint, Effects],
    baseline: Baseline,
    *,
    method: str,
    steps: int,
    batch_size: int,
) -> dict[HookPoint, Effects]:
    """Edges to the output from every group with a direct path to it, as effects along that path.

    effects: of the groups that edges are wanted of. For integrated gradients the derivative is averaged over the path
    of the source's own group.
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
