"""Means over prompts, with standard errors and the share of prompts in which a value is not zero.

Values of all nodes of a hook point come in pieces, so that no coder is too wide: those of one pass are never in memory
at once. Of several passes all sums are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.edges import Target
from circuitcli.attribution.panel import Panel, wide
from circuitcli.hookpoints import HookPoint


@dataclass(frozen=True)
class Average:
    """A mean over prompts; standard error and share of the prompts in which it is not zero, None for one prompt."""

    value: float
    standard_error: float | None = None
    active: float | None = None


def average(values: Float[Tensor, " prompt"]) -> Average:
    """Of one value for each prompt."""
    count = len(values)
    values = wide(values)
    if count == 1:
        return Average(float(values[0]))
    spread = float(values.std() / count**0.5)
    return Average(float(values.mean()), spread, int((values != 0).sum()) / count)


class Tally:
    """Sums of values of many nodes, with a row for each target, over prompts that come one after the other."""

    def __init__(self, n_targets: int, n_groups: int, n_nodes: int, device: torch.device) -> None:
        shape = (n_targets, n_groups, n_nodes)
        like = wide(torch.zeros(0, device=device))
        self.total, self.square = like.new_zeros(shape), like.new_zeros(shape)
        self.active = torch.zeros(shape, dtype=torch.int32, device=device)

    def add(
        self,
        features: slice,
        values: Float[Tensor, "row group width"],
        targets: Int[Tensor, " row"],
        *,
        least: float = 0.0,
    ) -> None:
        """Add rows, each of one prompt and one target; a value counts as active if its size is above ``least``."""
        values = wide(values)
        for sums, part in ((self.total, values), (self.square, values.square()), (self.active, values.abs() > least)):
            sums[..., features].index_add_(0, targets, part.to(sums))

    def mean(self, n_prompts: int) -> Float[Tensor, "target group node"]:
        """Means over all prompts; what was not added is zero."""
        return self.total / n_prompts

    def spread(self, n_prompts: int) -> Float[Tensor, "2 target group node"]:
        """Standard errors, and shares of the prompts in which a value is active."""
        mean = self.mean(n_prompts)
        variance = (self.square / n_prompts - mean.square()).clamp_min(0) * n_prompts / max(1, n_prompts - 1)
        return torch.stack([(variance / n_prompts).sqrt(), self.active.to(mean) / n_prompts])


@dataclass(frozen=True)
class Piece:
    """Some features of a hook point from ``start`` on, or its error (None).

    features: those that there are, where others between them are left out.
    """

    hook: HookPoint
    start: int | None
    width: int
    features: tuple[int, ...] | None = None

    def target(self, flat: int) -> Target:
        """The node at an index of the piece's values, flattened from (group, width)."""
        group, column = divmod(flat, self.width)
        if self.features is not None:
            return Target(self.features[column], group)
        return Target(None if self.start is None else self.start + column, group)

    @property
    def indices(self) -> Sequence[int | None]:
        """The feature of each column, None for the error."""
        if self.start is None:
            return (None,)
        return range(self.start, self.start + self.width) if self.features is None else self.features


@dataclass(frozen=True)
class Means:
    """Means over prompts of a piece's values for each target; spread as of `Tally`, None for one prompt."""

    piece: Piece
    values: Float[Tensor, "target group width"]
    spread: Float[Tensor, "2 target group width"] | None

    @classmethod
    def of(cls, piece: Piece, tally: Tally, *, n_prompts: int) -> "Means":
        """Those of a tally."""
        return cls(piece, tally.mean(n_prompts), tally.spread(n_prompts) if n_prompts > 1 else None)


@dataclass(frozen=True)
class Rows:
    """Contributions in rows, each of a prompt and for a target, with the positions of each group."""

    hook: HookPoint
    parts: Contributions
    masks: Bool[Tensor, "row group spliced"]
    targets: Int[Tensor, " row"]

    def grouped(self, panel: Panel) -> Iterator[tuple[slice, Float[Tensor, "row group width"]]]:
        """Some features after the other, added up over the positions of each group."""
        return ((features, panel.positions.summed(values, self.masks)) for features, values in self.parts.pieces())

    def means(self, panel: Panel, *, n_targets: int) -> Iterator[Means]:
        """Means over the prompts of these rows alone, some features after the other."""
        for features, values in self.grouped(panel):
            width = features.stop - features.start
            tally = Tally(n_targets, panel.positions.n_groups, width, values.device)
            tally.add(slice(None), values, self.targets)
            yield Means.of(Piece(self.hook, features.start, width), tally, n_prompts=panel.n_prompts)


@dataclass(frozen=True)
class ErrorRows:
    """What the error of a written hook point contributes, in rows as `Rows`, added up over the positions of each
    group."""

    hook: HookPoint
    values: Float[Tensor, "row group 1"]
    targets: Int[Tensor, " row"]

    def means(self, panel: Panel, *, n_targets: int) -> Iterator[Means]:
        """Means over the prompts of these rows alone."""
        tally = Tally(n_targets, panel.positions.n_groups, 1, self.values.device)
        tally.add(slice(0, 1), self.values, self.targets)
        yield Means.of(Piece(self.hook, None, 1), tally, n_prompts=panel.n_prompts)


class Sums:
    """Sums over the prompts of several passes, of all nodes of each hook point for each target."""

    def __init__(self, panel: Panel, n_targets: int) -> None:
        self._panel, self._n_targets = panel, n_targets
        self._tallies: dict[tuple[HookPoint, bool], Tally] = {}

    def add(self, rows: Rows | ErrorRows) -> None:
        """Add what features or an error contribute."""
        if isinstance(rows, ErrorRows):
            self._tally(rows.hook, 1, rows.values.device, is_error=True).add(slice(0, 1), rows.values, rows.targets)
            return
        tally = self._tally(rows.hook, rows.parts.coder.d_sae, rows.masks.device, is_error=False)
        for features, values in rows.grouped(self._panel):
            tally.add(features, values, rows.targets)

    def _tally(self, hook: HookPoint, n_nodes: int, device: torch.device, *, is_error: bool) -> Tally:
        key = (hook, is_error)
        if key not in self._tallies:
            self._tallies[key] = Tally(self._n_targets, self._panel.positions.n_groups, n_nodes, device)
        return self._tallies[key]

    def means(self) -> Iterator[Means]:
        """The means of each hook point."""
        for (hook, is_error), tally in self._tallies.items():
            piece = Piece(hook, None if is_error else 0, tally.total.shape[-1])
            yield Means.of(piece, tally, n_prompts=self._panel.n_prompts)
