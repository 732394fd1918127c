"""Effects of nodes on the metric, means over a panel's prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.averages import Average, ErrorRows, Means, Piece, Rows, Sums, Tally, average
from circuitcli.attribution.baselines import Baseline, differs
from circuitcli.attribution.contributions import AT_ONCE
from circuitcli.attribution.edges import Target, sources_of, to_output
from circuitcli.attribution.gradients import (
    Effects,
    Gradients,
    attribution_patching,
    effects_of,
    integrated_gradients,
    measured,
    tolerated,
)
from circuitcli.attribution.panel import Panel, wide
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings

# Where more features than this share differ from their baseline, all are projected on.
_FEW = 1 / 4
# Effects of a group on the prompts of a batch; None where it has none.
EffectsOf = Callable[[int, HookPoint], Effects | None]


@dataclass(frozen=True)
class Total:
    """What the nodes of a hook point add up to, the mean over prompts; what the effects of the group that its features
    are in miss of the change of the metric, and in how many steps at most they were taken. None for what is not there.
    """

    features: float | None
    errors: float | None
    gap: float | None
    steps: int | None = None


@dataclass(frozen=True)
class _Gradients:
    """What is kept of a group's effects: not the codes, which are their prompts'."""

    gradients: Gradients
    gap: Float[Tensor, " text"] | None
    counts: tuple[int, ...]
    sums: Float[Tensor, " text"] | None

    @classmethod
    def of(cls, effects: Effects) -> "_Gradients":
        return cls(effects.gradients, effects.gap, effects.counts, effects.sums)

    def effects(self, subject: Subject, group: HookPoint, baseline: Baseline) -> Effects:
        """The effects again."""
        found = effects_of(subject, group, baseline, self.gradients, self.gap, counts=self.counts)
        return replace(found, sums=self.sums)


def _size(kept: _Gradients | None) -> int:
    values = () if kept is None else kept.gradients.values()
    return sum(value.numel() * value.element_size() for value in values)


class PanelEffects:
    """Effects of each group on the prompts of each batch, taken when they are needed and kept as long as there is
    room."""

    def __init__(self, panel: Panel, settings: GraphSettings) -> None:
        self.panel, self.settings, self.coders = panel, settings, panel.coders
        self._direct = frozenset(sources_of(panel.coders, None))

    def of(self, batch: int, group: HookPoint) -> Effects:
        """Of one group on the prompts of a batch."""
        subject, baseline = self.panel.subject(batch)
        chosen = self.settings

        def integrated() -> _Gradients:
            steps, size = chosen.ig_steps, chosen.batch_size
            # Of all prompts, whatever batch or sample of them is at hand: the steps of each do not depend on that.
            whole = self.panel.whole or self.panel
            tolerance = None if steps is not None else tolerated(subject, whole.behaviour, level=whole.level)
            return _Gradients.of(
                integrated_gradients(subject, group, baseline, steps=steps, batch_size=size, tolerance=tolerance)
            )

        def patching() -> dict[HookPoint, _Gradients]:
            found = attribution_patching(subject, baseline, rule=chosen.method)
            return {hook: _Gradients.of(measured(subject, hook, one, baseline)) for hook, one in found.items()}

        if chosen.method in OF_ONE_GRADIENT:
            kept = self.panel.kept.take(("effects", batch), patching, lambda made: sum(map(_size, made.values())))[
                group
            ]
        else:
            kept = self.panel.kept.take(("effects", batch, group), integrated, _size)
        return kept.effects(subject, group, baseline)

    def to_output(self, batch: int, group: HookPoint) -> Effects | None:
        """The group's effects along the direct path to the output; None if it has none."""
        if not self._direct & set(self.coders[group].writes):
            return None
        subject, baseline = self.panel.subject(batch)
        chosen = self.settings

        def make() -> _Gradients | None:
            own = {group: self.of(batch, group)}
            # Along the direct path as many steps as the effects took in each text, whatever texts are beside it.
            steps, size = own[group].counts or 1, chosen.batch_size
            made = to_output(subject, own, baseline, method=chosen.method, steps=steps, batch_size=size).get(group)
            return None if made is None else _Gradients.of(made)

        kept = self.panel.kept.take(("output", batch, group), make, _size)
        return None if kept is None else kept.effects(subject, group, baseline)

    def reaches_output(self, group: HookPoint) -> bool:
        """Whether a direct path leads from the group to the output in some prompt."""
        return any(self.to_output(batch, group) is not None for batch in self.panel.numbers)

    def groups(self, hook: HookPoint) -> list[HookPoint]:
        """The groups that nodes of this name are in: of its features, and of its error."""
        of_features = [hook] if hook in self.coders else []
        of_error = [self.coders.group_of_error(hook)] if self.coders.writers(hook) else []
        return list(dict.fromkeys([*of_features, *of_error]))

    def total(self, hook: HookPoint) -> Total:
        """What all nodes of a hook point add up to. Raises InputError if an effect is not finite."""
        features: list[float] = []
        errors: list[float] = []
        gaps: list[float] = []
        steps: list[int] = []
        for batch in self.panel.numbers:
            if hook in self.coders:
                effects = self.of(batch, hook)
                features.append(effects.parts.total() if effects.sums is None else float(effects.sums.sum()))
                gaps += [] if effects.gap is None else effects.gap.tolist()
                steps.append(effects.steps)
            if self.coders.writers(hook):
                effects = self.of(batch, self.coders.group_of_error(hook))
                errors.append(float(effects.errors[hook].sum()))
        check_finite((*features, *errors, *gaps), f"an effect at {hook}")
        n = self.panel.n_prompts
        return Total(
            features=sum(features) / n if features else None,
            errors=sum(errors) / n if errors else None,
            gap=sum(gaps) / n if gaps else None,
            steps=max(steps, default=None),
        )

    def of_features(self, hook: HookPoint) -> Iterator[Means]:
        """Mean effects of all features that a hook point names, some after the other; where few differ from their
        baseline, of these alone."""
        live = self._live(hook)
        if len(live) <= _FEW * self.coders[hook].d_sae:
            return iter([self._of_live(hook, live)] if live else [])
        rows = (self._feature_rows(batch, hook) for batch in self.panel.numbers)
        if len(self.panel.batches) == 1:
            return next(rows).means(self.panel, n_targets=1)
        sums = Sums(self.panel, 1)
        for one in rows:
            sums.add(one)
        return sums.means()

    def _live(self, hook: HookPoint) -> list[int]:
        """The features that differ from their baseline somewhere."""
        found = torch.zeros(self.coders[hook].d_sae, dtype=torch.bool, device=self.panel.adapter.device)
        for subject, baseline in self.panel.subjects():
            found |= differs(subject.codes[hook], baseline.codes[hook]).flatten(0, 1).any(dim=0)
        live: list[int] = found.nonzero()[:, 0].tolist()
        return live

    def _of_live(self, hook: HookPoint, live: Sequence[int]) -> Means:
        """Mean effects of some features."""
        tally = Tally(1, self.panel.positions.n_groups, len(live), self.panel.adapter.device)
        for batch in self.panel.numbers:
            rows = self._feature_rows(batch, hook)
            width = max(1, AT_ONCE // rows.masks[:, 0].numel())
            for start in range(0, len(live), width):
                part = slice(start, min(start + width, len(live)))
                values = self.panel.positions.summed(rows.parts.at(live[part]), rows.masks)
                tally.add(part, values, rows.targets)
        return Means.of(Piece(hook, 0, len(live), tuple(live)), tally, n_prompts=self.panel.n_prompts)

    def _feature_rows(self, batch: int, hook: HookPoint) -> Rows:
        subject, _ = self.panel.subject(batch)
        of_one_target = torch.zeros(subject.n_texts, dtype=torch.int64, device=subject.adapter.device)
        return Rows(hook, self.of(batch, hook).parts, self.panel.masks(subject), of_one_target)

    def of_error(self, hook: HookPoint) -> Iterator[Means]:
        """Mean effects of the error of a written hook point."""
        sums, group = Sums(self.panel, 1), self.coders.group_of_error(hook)
        for batch in self.panel.numbers:
            subject, _ = self.panel.subject(batch)
            values = self.panel.positions.summed(
                self.of(batch, group).errors[hook][..., None], self.panel.masks(subject)
            )
            of_one_target = torch.zeros(subject.n_texts, dtype=torch.int64, device=values.device)
            sums.add(ErrorRows(hook, values, of_one_target))
        return sums.means()

    def averages(self, hook: HookPoint, targets: Sequence[Target]) -> list[Average]:
        """Of some nodes of a hook point the mean effect over the prompts."""
        return self._averages(hook, targets, self.of)

    def averages_to_output(self, hook: HookPoint, targets: Sequence[Target]) -> list[Average]:
        """Of some nodes of a hook point the mean edge to the output; zero where no direct path leads there."""
        return self._averages(hook, targets, self.to_output)

    def _averages(self, hook: HookPoint, targets: Sequence[Target], effects: EffectsOf) -> list[Average]:
        columns = [self._columns(batch, hook, targets, effects) for batch in self.panel.numbers]
        return [average(values) for values in torch.cat(columns).unbind(dim=1)]

    def _columns(
        self, batch: int, hook: HookPoint, targets: Sequence[Target], effects: EffectsOf
    ) -> Float[Tensor, "text target"]:
        """Effects of some nodes on each prompt of a batch; zero where there are none."""
        subject, _ = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        columns = wide(torch.zeros(subject.n_texts, len(targets), device=masks.device))
        features = [number for number, target in enumerate(targets) if target.index is not None]
        errors = [number for number, target in enumerate(targets) if target.index is None]
        found: list[tuple[list[int], Tensor]] = []
        of_features = effects(batch, hook) if features else None
        if of_features is not None:
            found.append((features, of_features.parts.at([targets[number].index or 0 for number in features])))
        of_error = effects(batch, self.coders.group_of_error(hook)) if errors else None
        if of_error is not None and hook in of_error.errors:
            found.append((errors, of_error.errors[hook][..., None].expand(-1, -1, len(errors))))
        for numbers, values in found:
            where = masks[:, [targets[number].group for number in numbers]]  # (text, target, spliced)
            columns[:, numbers] = wide(torch.einsum("tnp,tpn->tn", where.to(values), values))
        return columns
