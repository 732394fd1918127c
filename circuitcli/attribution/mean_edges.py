"""Edges into nodes, means over a panel's prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.cells import Cells
from circuitcli.attribution.edges import Incoming, Taken, Target, ends_of, incoming, joint_steps, sources_of
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings

# What a sum over positions or prompts may miss of an edge that is as small as can be kept: small parts are left out.
MISSED = 0.01


@dataclass(frozen=True)
class PanelEdges:
    """Edges into nodes on the prompts of a panel, for gradients as the effects have them."""

    effects: PanelEffects

    @property
    def panel(self) -> Panel:
        """The prompts."""
        return self.effects.panel

    @property
    def taken(self) -> Taken:
        """How derivatives are taken."""
        return taken_by(self.effects.settings)

    def into(
        self,
        hook: HookPoint,
        targets: Sequence[Target],
        *,
        least: float = 0.0,
        values: Mapping[Target, float] | None = None,
    ) -> Iterator[tuple[HookPoint, Cells]]:
        """Mean edges into some nodes of a hook point by what names their sources, in pieces; targets by their number.

        Every edge is in one piece, but for those below ``least``, which may be missing. values: what a unit of each
        target's code counts, in place of its gradient.
        """
        found: dict[HookPoint, list[Cells]] = {}
        for batch in self.panel.numbers:
            for source, cells in self._of_batch(batch, hook, targets, self._least_part(least), values):
                if self.panel.n_prompts == 1:
                    yield source, cells
                else:
                    kept = found.setdefault(source, [])
                    kept[:] = [Cells.merged([*kept, cells])]
        yield from ((source, cells) for source, (cells,) in found.items())

    def changed(self, hook: HookPoint, target: Target) -> float:
        """The mean over prompts of how far a feature is from its baseline, added up over its positions: without signs,
        as what differs in some prompts one way and in others the other way would not differ at all."""
        total = 0.0
        for batch in self.panel.numbers:
            subject, baseline = self.panel.subject(batch)
            difference = subject.codes[hook][..., target.index] - baseline.codes[hook][..., target.index]
            total += float((difference.abs() * self.panel.masks(subject)[:, target.group]).sum())
        return total / self.panel.n_prompts

    def _least_part(self, least: float) -> float:
        """Parts of an edge, at one position and in one prompt, that may be left out."""
        apart = self.panel.positions.kind == "all"
        if self.panel.n_prompts > 1 or not apart:
            least *= MISSED
        return least if apart else least / max(prompt.n_spliced for prompt in self.panel.prompts)

    def _of_batch(
        self,
        batch: int,
        hook: HookPoint,
        targets: Sequence[Target],
        least: float,
        values: Mapping[Target, float] | None,
    ) -> Iterator[tuple[HookPoint, Cells]]:
        """Edges into the targets that are live in each prompt of a batch, some rows after the other."""
        subject, baseline = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        pairs = live(subject, masks, hook, targets, either=self.taken.points > 0).nonzero().tolist()
        effects = {group: self.effects.of(batch, group) for group in self.effects.groups(hook)}
        size = self._rows_at_once(subject, hook, targets)
        steps = self._steps(batch)

        def run(some: Sequence[list[int]]) -> tuple[Sequence[list[int]], Incoming | None]:
            rows = [(text, targets[number]) for text, number in some]
            options: dict[str, Any] = {"masks": masks, "taken": self.taken, "steps": steps}
            if values is not None:
                # Not every device has float64.
                like = next(iter(subject.codes.values()))
                options["values"] = like.new_tensor([values[target] for _, target in rows])
            return some, incoming(subject, hook, rows, effects, baseline, **options)

        for some, found in in_batches(pairs, run, size=size):
            if found is not None:
                numbers = torch.tensor([number for _, number in some], device=masks.device)
                yield from self._cells(found, masks[[text for text, _ in some]], numbers, least)

    def _steps(self, batch: int) -> Mapping[HookPoint, Float[Tensor, "text spliced d_model"]]:
        """What sources of a batch take off on their way to the baseline."""
        if not self.taken.points:
            return {}
        return self.panel.kept.take(("steps", batch), lambda: joint_steps(*self.panel.subject(batch)), _size)

    def _cells(
        self,
        found: Incoming,
        masks: Bool[Tensor, "row group spliced"],
        numbers: Int[Tensor, " row"],
        least: float,
    ) -> Iterator[tuple[HookPoint, Cells]]:
        positions = self.panel.positions
        for source, parts in found.features.items():
            for piece in parts.sparse(least):
                yield source, Cells.of(piece, masks=masks, targets=numbers, apart=positions.kind == "all")
        for place, values in found.errors.items():
            summed = positions.summed(values[..., None], masks)[..., 0]
            yield place, Cells.of_errors(summed, targets=numbers)

    def _rows_at_once(self, subject: Subject, hook: HookPoint, targets: Sequence[Target]) -> int:
        """Targets in one backward pass."""
        coders = self.panel.coders
        kinds = {target.index is None for target in targets}
        ends = {end for kind in kinds for end in ends_of(coders, hook, is_error=kind)}
        sources = sources_of(coders, ends)
        if not sources:
            return max(1, len(targets))
        start, chosen, stop = min(first_block(source) for source in sources), self.effects.settings, max(ends).layer + 1
        at_most, method = chosen.batch_size, chosen.method
        return rows_at_once(subject, start, backward=True, at_most=at_most, stop=stop, method=method)


def _size(values: Mapping[HookPoint, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values.values())


def taken_by(settings: GraphSettings) -> Taken:
    """How the derivatives of a graph's edges are taken: along the path between the two runs where effects are."""
    points = 0 if settings.method in OF_ONE_GRADIENT else settings.edge_points
    return Taken(points=points, method=settings.method)


def live(
    subject: Subject,
    masks: Bool[Tensor, "text group spliced"],
    hook: HookPoint,
    targets: Sequence[Target],
    *,
    either: bool,
) -> Bool[Tensor, "text target"]:
    """Which nodes can have incoming edges in each prompt: errors, and features that are active in the clean run.

    either: features that are not may have some, as they may be active at the other end of a path.
    """
    where = masks[:, [target.group for target in targets]]  # (text, target, spliced)
    features = [number for number, target in enumerate(targets) if target.index is not None]
    found = where.any(dim=2)
    if features and not either:
        codes = subject.codes[hook][:, :, [targets[number].index for number in features]]
        found[:, features] = ((codes != 0).transpose(1, 2) & where[:, features]).any(dim=2)
    return found
