"""The path on which one group of nodes moves from the clean run to its baseline, and gradients and metrics along it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.moves import change_to
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.splice import shifted

Gradients = Mapping[HookPoint, Float[Tensor, "text position d_out"]]
# Of rows at shares of a path, each a copy of a text.
PathGradients = Callable[[Tensor, Tensor], Mapping[HookPoint, Tensor]]


class Point(NamedTuple):
    """A share of the path of one text, and how much what is there counts."""

    text: int
    share: float
    weight: float = 1.0


class Weighted(NamedTuple):
    """Sums of gradients for each text, and at each point how fast the metric falls along the path; that of other
    gradients than those of the path is left out."""

    totals: dict[HookPoint, Float[Tensor, "text spliced d_out"]]
    slopes: list[float]


@dataclass(frozen=True)
class GroupPath:
    """The straight path on which one group moves from its clean values (share 0) to the baseline (share 1).

    steps: at each hook point that the group's coder writes, what is taken off at the end of the path; where the error
    is in the group the activation there is known, elsewhere the step comes off what arrives. changes: the part of the
    codes in it.
    """

    subject: Subject
    hook: HookPoint
    steps: Mapping[HookPoint, Float[Tensor, "text spliced d_out"]]
    changes: Mapping[HookPoint, Float[Tensor, "text spliced d_out"]]

    @classmethod
    def of(cls, subject: Subject, hook: HookPoint, baseline: Baseline) -> "GroupPath":
        """The path of the coder that reads a hook point."""
        coder, frame = subject.coders[hook], subject.coded.frames[hook]
        codes, absent = subject.codes[hook], baseline.codes[hook]
        changes = {place: change_to(coder, codes, absent, frame, hook=place) for place in coder.writes}
        errors = {place: subject.errors[place] - baseline.errors[place] for place in subject.coders.errors_of(hook)}
        return cls(subject, hook, changes | {place: changes[place] + part for place, part in errors.items()}, changes)

    @property
    def start(self) -> int:
        """The block at which runs along the path may start."""
        return min(first_block(place) for place in self.steps)

    def taps(
        self, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"] | None
    ) -> tuple[dict[HookPoint, Callback], dict[HookPoint, Tensor]]:
        """Taps that put each row at its share of the path, and by written hook point the leaf whose gradient is dm/dx
        there."""
        known = self.subject.coders.errors_of(self.hook)
        callbacks: dict[HookPoint, Callback] = {}
        leaves: dict[HookPoint, Tensor] = {}
        for place, step in self.steps.items():
            amount = shares[:, None, None] * (step if texts is None else step[texts])
            if place in known:
                clean = self.subject.activation(place)
                value = (clean if texts is None else clean[texts]).clone()
                value[:, self.subject.first :] -= amount
                leaves[place] = leaf(value)
                callbacks[place] = _placed(leaves[place])
            else:
                leaves[place] = leaf(-amount)
                callbacks[place] = _added(leaves[place], self.subject.first)
        return callbacks, leaves

    def gradients(
        self, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"]
    ) -> dict[HookPoint, Float[Tensor, "row spliced d_out"]]:
        """Gradient of the metric by each written activation at each share of the path, all else running free."""
        with torch.enable_grad():
            callbacks, leaves = self.taps(shares, texts)
            value = self.subject.metric_of(callbacks, texts=texts, start=self.start).sum()
            gradients = torch.autograd.grad(value, list(leaves.values()))
        known = self.subject.coders.errors_of(self.hook)
        return {
            place: gradient[:, self.subject.first :] if place in known else gradient
            for place, gradient in zip(leaves, gradients, strict=True)
        }

    def mean_gradients(
        self,
        *,
        steps: int | Sequence[int],
        batch_size: int,
        at_clean: bool = False,
        gradients: PathGradients | None = None,
    ) -> dict[HookPoint, Float[Tensor, "text spliced d_out"]]:
        """Mean gradient over the path by the midpoint rule, or (at_clean) the gradient where it begins.

        steps: of each text, or of all. gradients: those of runs at shares of the path; `gradients` unless given.
        """
        counts = [steps] * self.subject.n_texts if isinstance(steps, int) else steps
        shares = [[0.0] if at_clean else midpoints(count) for count in counts]
        points = [Point(text, share, 1 / len(own)) for text, own in enumerate(shares) for share in own]
        return self.weighted(points, batch_size=batch_size, gradients=gradients).totals

    def weighted(self, points: Sequence[Point], *, batch_size: int, gradients: PathGradients | None = None) -> Weighted:
        """Gradients at points of the path, times their weights, added up for each text."""
        like, n_texts = next(iter(self.steps.values())), self.subject.n_texts
        size = rows_at_once(self.subject, self.start, backward=True, at_most=max(batch_size, 1))
        totals: dict[HookPoint, Tensor] = {}
        slopes: list[Tensor] = []

        def run(some: Sequence[Point]) -> tuple[Tensor, Tensor, Mapping[HookPoint, Tensor]]:
            texts, shares = self._rows(some)
            weights = like.new_tensor([point.weight for point in some])
            return texts, weights, (gradients or self.gradients)(shares, texts)

        for texts, weights, found in in_batches(points, run, size=size):
            for place, gradient in found.items():
                total = totals.setdefault(place, gradient.new_zeros(n_texts, *gradient.shape[1:]))
                total.index_add_(0, texts, gradient * weights[:, None, None].to(gradient))
            if gradients is None:
                slopes.append(_product(found, {place: self.steps[place][texts] for place in found}))
        return Weighted(totals, torch.cat(slopes).tolist() if slopes else [])

    def _rows(self, points: Sequence[Point]) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """Texts and shares of points."""
        like = next(iter(self.steps.values()))
        return (
            torch.tensor([point.text for point in points], device=like.device),
            like.new_tensor([point.share for point in points]),
        )

    def metrics(self, points: Sequence[Point], *, batch_size: int) -> list[float]:
        """The metric at points of the path."""
        size = rows_at_once(self.subject, self.start, backward=False, at_most=max(batch_size, 1))

        def run(some: Sequence[Point]) -> Tensor:
            texts, shares = self._rows(some)
            return self.subject.metric_of(self.taps(shares, texts)[0], texts=texts, start=self.start)

        with torch.no_grad():
            return [value for values in in_batches(points, run, size=size) for value in values.tolist()]

    def total(self, gradients: Gradients) -> Float[Tensor, " text"]:
        """What the effects of all nodes of the group add up to for mean gradients."""
        return _product(gradients, self.steps)

    def of_features(self, gradients: Gradients) -> Float[Tensor, " text"]:
        """What the effects of its features add up to."""
        return _product(gradients, self.changes)

    def change(self) -> Float[Tensor, " text"]:
        """``m(clean) - m(group at baseline)``, which the effects of the group ought to add up to."""
        n_texts, clean = self.subject.n_texts, self.subject.metric_clean
        ends = self.metrics([Point(text, 1.0) for text in range(n_texts)], batch_size=n_texts)
        return clean - clean.new_tensor(ends)


def _product(gradients: Gradients, moves: Gradients) -> Float[Tensor, " text"]:
    """Gradients times what is moved, over all hook points, positions and directions."""
    products = [(gradient * moves[place]).sum(dim=(1, 2)) for place, gradient in gradients.items()]
    return torch.stack(products).sum(dim=0)


def midpoints(steps: int) -> list[float]:
    """The middles of so many equal parts of a path."""
    return [(number + 0.5) / steps for number in range(steps)]


def _placed(value: Tensor) -> Callback:
    return lambda x: value.to(x)


def _added(change: Tensor, first: int) -> Callback:
    return lambda x: shifted(x, change, first=first)
