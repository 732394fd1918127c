"""Response curves: how the metric, and what reads a feature, respond when the feature is multiplied by coefficients.

With ``c`` in place of 1 a feature goes on as ``c f``: its activation at all that its coder writes is moved by ``(c - 1)
f`` times the decoder. Runs go in batches and equal one separate pass for each coefficient. The curve of a reader is its
activation added up over its positions, so that the value at 1 minus the value at 0 is the naive graph's edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution import baselines
from circuitcli.attribution.ablation import ablate
from circuitcli.attribution.averages import Average, average
from circuitcli.attribution.changes import Board, Comparison
from circuitcli.attribution.edges import Target
from circuitcli.attribution.memory import in_batches
from circuitcli.attribution.naive import ACTIVATION, NaiveSearch
from circuitcli.attribution.panel import wide
from circuitcli.attribution.subject import check_finite
from circuitcli.hookpoints import OUTPUT, HookPoint
from circuitcli.progress import task


@dataclass(frozen=True)
class Curve:
    """The mean over prompts of a node's activation, or of the metric (``output``), at each coefficient."""

    of: str
    values: tuple[Average, ...]
    unit: str


@dataclass(frozen=True)
class Response:
    """How the metric, and the readers that change the most, respond to a feature; the strongest reader first."""

    source: str
    metric: Curve
    readers: tuple[Curve, ...]


def responses(search: NaiveSearch, coefficients: Sequence[float], *, n_readers: int) -> list[Response]:
    """Of each pinned feature at each group of positions. Raises InputError for pins as the naive graph does."""
    found = []
    for hook in sorted(search.pins):
        for source in search.sources(hook):
            sweep = _Sweep(search, hook, source, coefficients)
            with task(f"sweep {hook}/{source.index}", total=search.panel.n_prompts, unit="prompts") as advance:
                for batch, numbers in enumerate(search.panel.batches):
                    sweep.add(batch)
                    advance(len(numbers))
            found.append(sweep.response(n_readers))
    return found


@dataclass(frozen=True)
class _Found:
    """What a pass changed at a hook point: of which prompt, at which coefficient, at which place, by how much."""

    prompts: Int[Tensor, " entry"]
    steps: Int[Tensor, " entry"]
    places: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]


class _Sweep:
    """The runs of one feature at one group of positions."""

    def __init__(self, search: NaiveSearch, hook: HookPoint, source: Target, coefficients: Sequence[float]) -> None:
        self.search, self.panel, self.hook, self.source = search, search.panel, hook, source
        self.coefficients, self.measured = coefficients, search.measured(hook)
        self._board = Board(self.panel.adapter.device)
        self._zero = baselines.zero(self.panel.coders)
        self._found: dict[HookPoint, list[_Found]] = {other: [] for other in self.measured}
        clean = torch.tensor(self.panel.metric_clean(), dtype=torch.float64)
        like = wide(torch.zeros(0, device=self.panel.adapter.device))
        self._metric = clean.to(like)[:, None].repeat(1, len(coefficients))  # (prompt, coefficient)

    def add(self, batch: int) -> None:
        """Run the prompts of a batch in which the feature is active."""
        subject, _ = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        codes = subject.codes[self.hook][..., self.source.index]  # (text, spliced)
        active = ((codes != 0) & masks[:, self.source.group]).any(dim=1).nonzero()[:, 0].tolist()
        rows = [(text, step) for text in active for step in range(len(self.coefficients))]
        size = self.search.rows_at_once(subject, self.hook, self.measured)
        for _ in in_batches(rows, partial(self._add_rows, batch), size=size):
            pass

    def _add_rows(self, batch: int, rows: Sequence[tuple[int, int]]) -> None:
        subject, _ = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        texts, steps = torch.tensor(rows, device=masks.device).unbind(dim=1)
        ablated = ablate(
            subject,
            self.hook,
            [(text, self.source) for text, _ in rows],
            self._zero,
            measured=self.measured,
            masks=masks,
            shares=torch.tensor([1 - self.coefficients[step] for _, step in rows], dtype=torch.float64),
        )
        check_finite(ablated.effect.tolist(), f"the metric with {self.hook}/{self.source.index} multiplied")
        changes = {
            other: Comparison(self.panel, batch, other, self._board, masks).changes(x, texts, ablated.first)
            for other, x in ablated.read.items()
        }
        prompts = torch.tensor(self.panel.batches[batch], device=masks.device)[texts]
        self._metric[prompts, steps] -= ablated.effect.to(self._metric)
        for other, change in changes.items():
            places = change.groups * self.panel.coders[other].d_sae + change.features
            self._found[other].append(_Found(prompts[change.rows], steps[change.rows], places, change.values))

    def response(self, n_readers: int) -> Response:
        """The curves of the metric and of the readers whose mean activation goes furthest from the clean one."""
        unit = self.panel.subject(0)[0].metric.unit
        name = self.panel.node_id(self.hook, self.source.index, self.source.group)
        metric = Curve(OUTPUT, tuple(average(values) for values in self._metric.unbind(dim=1)), unit)
        ranked = [one for other in self.measured for one in self._strongest(other, n_readers)]
        ranked.sort(key=lambda one: -one[0])
        readers = tuple(self._curve(other, place) for _, other, place in ranked[:n_readers])
        return Response(name, metric, readers)

    def _strongest(self, other: HookPoint, count: int) -> list[tuple[float, HookPoint, int]]:
        """Size of the largest mean change, hook point and place of the readers that change the most."""
        if not self._found[other]:
            return []
        steps, places, values = (
            torch.cat([getattr(found, name) for found in self._found[other]]) for name in ("steps", "places", "values")
        )
        once, column = places.unique(return_inverse=True)
        sums = values.new_zeros(len(once), len(self.coefficients))
        sums.index_put_((column, steps), values, accumulate=True)
        top = (sums.abs().amax(dim=1) / self.panel.n_prompts).topk(min(count, len(once)))
        pairs = zip(top.values.tolist(), once[top.indices].tolist(), strict=True)
        return [(size, other, place) for size, place in pairs]

    def _curve(self, other: HookPoint, place: int) -> Curve:
        group, index = divmod(place, self.panel.coders[other].d_sae)
        changed = torch.zeros_like(self._metric)
        for found in self._found[other]:
            here = found.places == place
            changed[found.prompts[here], found.steps[here]] = found.values[here].to(changed)
        values = self._clean(other, group, index)[:, None] - changed
        name = self.panel.node_id(other, index, group)
        return Curve(name, tuple(average(column) for column in values.unbind(dim=1)), ACTIVATION)

    def _clean(self, other: HookPoint, group: int, index: int) -> Float[Tensor, " prompt"]:
        """The feature's activation in each prompt, added up over the positions of a group."""
        values = torch.zeros_like(self._metric[:, 0])
        for batch, numbers in enumerate(self.panel.batches):
            subject, _ = self.panel.subject(batch)
            codes = subject.codes[other][..., index] * self.panel.masks(subject)[:, group]
            values[list(numbers)] = codes.sum(dim=1).to(values)
        return values
