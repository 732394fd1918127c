"""Exact effects: ``m(clean) - m(one node at its baseline)`` by a forward pass for each node that differs from it.

Of all nodes (``--method exact``), or of the strongest of each hook point by another method (``--refine N``). Gradients,
which edges come from, stay those of integrated gradients or of the other method. What one ablation at a time does not
see: of two nodes that can each do the work alone neither has an effect, and silent backups that step in hide one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.ablation import ablate, live_sources
from circuitcli.attribution.activity import differing
from circuitcli.attribution.averages import Average, Means, Piece, Tally, average
from circuitcli.attribution.edges import Target
from circuitcli.attribution.mean_effects import PanelEffects, Total
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.panel import Panel, wide
from circuitcli.attribution.subject import check_finite
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.progress import Advance, task
from circuitcli.settings.graph import GraphSettings


@dataclass(frozen=True)
class Table:
    """Exact effects of some nodes of a hook point on each prompt."""

    hook: HookPoint
    targets: tuple[Target, ...]
    values: Float[Tensor, "prompt target"]

    @cached_property
    def places(self) -> Mapping[Target, int]:
        """The column of each node."""
        return {target: column for column, target in enumerate(self.targets)}

    @cached_property
    def features(self) -> tuple[int, ...]:
        """The columns of features."""
        return tuple(column for column, target in enumerate(self.targets) if target.index is not None)

    @cached_property
    def errors(self) -> tuple[int, ...]:
        """The columns of the error's nodes."""
        return tuple(column for column, target in enumerate(self.targets) if target.index is None)

    def total(self, columns: Sequence[int]) -> float:
        """Sum over some nodes of their mean effects."""
        return float(self.values[:, list(columns)].sum()) / len(self.values)

    def averages(self) -> list[Average]:
        """Of each node the mean effect over the prompts."""
        return [average(values) for values in self.values.unbind(dim=1)]

    def put(self, tally: Tally, columns: Sequence[int]) -> None:
        """Put some nodes in the place of what a tally of one target, with all features of a group in a row, has."""
        chosen, device = self.values[:, list(columns)], self.values.device
        # Of no columns too these are whole numbers.
        groups = torch.tensor([self.targets[column].group for column in columns], dtype=torch.int64, device=device)
        indices = torch.tensor(
            [self.targets[column].index or 0 for column in columns], dtype=torch.int64, device=device
        )
        sums = (chosen.sum(dim=0), chosen.square().sum(dim=0), (chosen != 0).sum(dim=0))
        for values, part in zip((tally.total, tally.square, tally.active), sums, strict=True):
            values[0, groups, indices] = part.to(values)


def exact_table(panel: Panel, hook: HookPoint, targets: Sequence[Target], *, batch_size: int) -> Table:
    """Ablate each of some nodes of a hook point, in every prompt in which it differs from its baseline."""
    values = wide(torch.zeros(panel.n_prompts, len(targets), device=panel.adapter.device))
    pairs = [live_pairs(panel, batch, hook, targets) for batch in panel.numbers]
    with task(f"ablate {hook}", total=sum(map(len, pairs)), unit="ablations") as advance:
        for batch in panel.numbers:
            values[list(panel.batches[batch])] = _of_batch(
                panel, batch, hook, targets, pairs[batch], batch_size=batch_size, advance=advance
            )
    check_finite(values.flatten().tolist(), f"the metric without a node of {hook}")
    return Table(hook, tuple(targets), values)


def live_pairs(panel: Panel, batch: int, hook: HookPoint, targets: Sequence[Target]) -> list[tuple[int, int]]:
    """Text and number of each node that differs from its baseline there; errors always do."""
    subject, _ = panel.subject(batch)
    live = torch.ones(subject.n_texts, len(targets), dtype=torch.bool, device=panel.adapter.device)
    features = [number for number, target in enumerate(targets) if target.index is not None]
    if features:
        groups = [targets[number].group for number in features]
        indices = [targets[number].index for number in features]
        live[:, features] = differing(panel, batch, hook)[:, groups, indices]
    return [(text, number) for text, number in live.nonzero().tolist()]


def _of_batch(
    panel: Panel,
    batch: int,
    hook: HookPoint,
    targets: Sequence[Target],
    pairs: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    advance: Advance,
) -> Float[Tensor, "text target"]:
    """Effects of nodes on the texts of a batch; zero where they are at their baseline."""
    subject, baseline = panel.subject(batch)
    masks = panel.masks(subject)
    values = wide(torch.zeros(subject.n_texts, len(targets), device=masks.device))

    def run(some: Sequence[tuple[int, int]]) -> Tensor:
        rows = [(text, targets[number]) for text, number in some]
        return ablate(subject, hook, rows, baseline, measured=(), masks=masks).effect

    coders = subject.coders
    places = (*(coders[hook].writes if hook in coders else ()), *((hook,) if coders.writers(hook) else ()))
    start = min(first_block(place) for place in places)
    size = rows_at_once(subject, start, backward=False, at_most=batch_size)
    done = 0
    for effects in in_batches(pairs, run, size=size):
        texts, numbers = zip(*pairs[done : done + len(effects)], strict=True)
        values[list(texts), list(numbers)] = effects.to(values)
        done += len(effects)
        advance(len(effects))
    return values


class ExactEffects(PanelEffects):
    """Effects of all nodes by ablating one at a time."""

    def __init__(self, panel: Panel, settings: GraphSettings) -> None:
        super().__init__(panel, settings)
        self._tables: dict[HookPoint, Table] = {}

    def table(self, hook: HookPoint) -> Table:
        """Of all nodes that differ from their baseline in some prompt."""
        if hook not in self._tables:
            live = live_sources(self.panel, hook)
            self._tables[hook] = exact_table(self.panel, hook, live, batch_size=self.settings.batch_size)
        return self._tables[hook]

    def total(self, hook: HookPoint) -> Total:
        """What single effects add up to; they make no promise about that, so there is no gap."""
        table = self.table(hook)
        return Total(
            features=table.total(table.features) if hook in self.coders else None,
            errors=table.total(table.errors) if self.coders.writers(hook) else None,
            gap=None,
        )

    def of_features(self, hook: HookPoint) -> Iterator[Means]:
        """See `PanelEffects`."""
        table = self.table(hook)
        tally = Tally(1, self.panel.positions.n_groups, self.coders[hook].d_sae, table.values.device)
        table.put(tally, table.features)
        yield Means.of(Piece(hook, 0, self.coders[hook].d_sae), tally, n_prompts=self.panel.n_prompts)

    def of_error(self, hook: HookPoint) -> Iterator[Means]:
        """See `PanelEffects`."""
        table = self.table(hook)
        tally = Tally(1, self.panel.positions.n_groups, 1, table.values.device)
        table.put(tally, table.errors)
        yield Means.of(Piece(hook, None, 1), tally, n_prompts=self.panel.n_prompts)

    def averages(self, hook: HookPoint, targets: Sequence[Target]) -> list[Average]:
        """See `PanelEffects`; what is at its baseline everywhere has no effect."""
        table = self.table(hook)
        nothing = average(torch.zeros(self.panel.n_prompts))
        found = table.averages()
        return [found[table.places[target]] if target in table.places else nothing for target in targets]


class RefinedEffects(PanelEffects):
    """Effects by another method, but exact ones of the nodes that are strongest by it at each hook point."""

    def __init__(self, panel: Panel, settings: GraphSettings) -> None:
        super().__init__(panel, settings)
        self._tables: dict[HookPoint, Table] = {}

    def table(self, hook: HookPoint) -> Table:
        """Of the strongest nodes, features and error, whatever their sign."""
        if hook not in self._tables:
            count = self.settings.refine
            found: list[tuple[float, Target]] = []
            for means in self._pieces(hook):
                sizes = means.values.flatten().abs()
                top = sizes.topk(min(count, len(sizes)))
                pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
                found += [(size, means.piece.target(index)) for size, index in pairs if size > 0]
                found = sorted(found, key=lambda pair: -pair[0])[:count]
            targets = [target for _, target in found]
            self._tables[hook] = exact_table(self.panel, hook, targets, batch_size=self.settings.batch_size)
        return self._tables[hook]

    def _pieces(self, hook: HookPoint) -> Iterator[Means]:
        if hook in self.coders:
            yield from super().of_features(hook)
        if self.coders.writers(hook):
            yield from super().of_error(hook)

    def of_features(self, hook: HookPoint) -> Iterator[Means]:
        """See `PanelEffects`."""
        return (self._with_exact(means) for means in super().of_features(hook))

    def of_error(self, hook: HookPoint) -> Iterator[Means]:
        """See `PanelEffects`."""
        return (self._with_exact(means) for means in super().of_error(hook))

    def _with_exact(self, means: Means) -> Means:
        """A piece with exact values where there are any."""
        table, piece = self.table(means.piece.hook), means.piece
        places = {index: column for column, index in enumerate(piece.indices)}
        columns = [column for column, target in enumerate(table.targets) if target.index in places]
        values, spread = means.values.clone(), None if means.spread is None else means.spread.clone()
        averages = table.averages()
        for column in columns:
            target, exact = table.targets[column], averages[column]
            place = (0, target.group, places[target.index])
            values[place] = exact.value
            if spread is not None:
                spread[(0, *place)], spread[(1, *place)] = exact.standard_error or 0.0, exact.active or 0.0
        return replace(means, values=values, spread=spread)

    def averages(self, hook: HookPoint, targets: Sequence[Target]) -> list[Average]:
        """See `PanelEffects`."""
        table, found = self.table(hook), super().averages(hook, targets)
        exact = table.averages()
        return [
            exact[table.places[target]] if target in table.places else other
            for target, other in zip(targets, found, strict=True)
        ]


def effects_of_panel(panel: Panel, settings: GraphSettings) -> PanelEffects:
    """The effects that settings ask for."""
    if settings.method == "exact":
        return ExactEffects(panel, settings)
    return RefinedEffects(panel, settings) if settings.refine else PanelEffects(panel, settings)
