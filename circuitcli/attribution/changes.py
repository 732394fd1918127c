"""What ablations change in the codes of a later coder, as lists of what is not zero.

Of all codes only few are active, in the clean run or in the edited one. So differences are lists of the active codes of
both runs, added up by place; no matrix of all codes of all positions is made, moved, or passed over. Models are causal:
in front of the first position that is moved nothing changes, and there no code is made at all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.panel import Panel, wide
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import nonzero
from circuitcli.saes.fast.selection import Chosen


class Changes(NamedTuple):
    """Differences that are not zero, clean minus edited, added up over the positions of each group; each place once."""

    rows: Int[Tensor, " entry"]
    groups: Int[Tensor, " entry"]
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]


class Board:
    """Room to add up values by place without passing over all places; between uses all of it is zero."""

    def __init__(self, device: torch.device) -> None:
        self._sums = wide(torch.zeros(0, device=device))
        self._last = torch.zeros(0, dtype=torch.int32, device=device)

    def summed(
        self, places: Int[Tensor, " entry"], values: Float[Tensor, " entry"], *, n_places: int
    ) -> tuple[Int[Tensor, " place"], Float[Tensor, " place"]]:
        """Each place that is named, once, and the sum of its values."""
        if n_places > len(self._sums):
            self._sums, self._last = self._sums.new_zeros(n_places), self._last.new_empty(n_places)
        order = torch.arange(len(places), dtype=torch.int32, device=places.device)
        # Of entries of one place one is the last to be written, whichever it is.
        self._last[places] = order
        once, values = places[self._last[places] == order], values.to(self._sums)
        try:
            self._sums.index_add_(0, places, values)
            return once, self._sums[once]
        finally:
            self._sums[once] = 0


@dataclass(frozen=True)
class Comparison:
    """The codes of one hook point in the clean run of a batch of prompts, to compare edited runs with; ``masks`` are
    the positions of each group."""

    panel: Panel
    batch: int
    hook: HookPoint
    board: Board
    masks: Bool[Tensor, "text group spliced"]

    def changes(
        self, x: Float[Tensor, "row spliced d_in"], texts: Int[Tensor, " row"], first: Int[Tensor, " row"]
    ) -> Changes:
        """Of edited runs, each of a text and moved from its first position on; x: what the coder reads in them."""
        rows, positions = self._where(texts, first).nonzero(as_tuple=True)
        edited, clean = self._active(x, rows, positions), self._clean(texts[rows], positions)
        features, tokens = torch.cat([clean.features, edited.features]), torch.cat([clean.tokens, edited.tokens])
        values = torch.cat([clean.values, -edited.values])
        d_sae, n_groups = self.panel.coders[self.hook].d_sae, self.panel.positions.n_groups
        places, sums = [], []
        for groups, inside in self._groups(texts, rows, positions, tokens):
            places.append(((rows[tokens] * n_groups + groups) * d_sae + features)[inside])
            sums.append(values[inside])
        once, total = self.board.summed(torch.cat(places), torch.cat(sums), n_places=len(x) * n_groups * d_sae)
        kept = total != 0
        row_and_group = torch.div(once[kept], d_sae, rounding_mode="floor")
        return Changes(
            torch.div(row_and_group, n_groups, rounding_mode="floor"),
            row_and_group % n_groups,
            once[kept] % d_sae,
            total[kept],
        )

    def _where(self, texts: Tensor, first: Tensor) -> Bool[Tensor, "row spliced"]:
        """Where codes are made: from the first position that is moved on, as far as a node stands there."""
        places = torch.arange(self.masks.shape[2], device=first.device)
        return self._standing[texts] & (places >= first[:, None])

    @property
    def _standing(self) -> Bool[Tensor, "text spliced"]:
        if self.panel.positions.kind in ("all", "sum"):
            return self.masks.new_ones(len(self.masks), self.masks.shape[2])
        return self.masks.any(dim=1)

    def _active(self, x: Tensor, rows: Tensor, positions: Tensor) -> Chosen:
        """The codes that are not zero at these positions."""
        coder = self.panel.coders[self.hook]
        if not coder.reads_context:
            return coder.active(x[rows, positions].to(coder.W_enc))
        return nonzero(torch.cat([coder.encode(text.to(coder.W_enc)) for text in x.split(1)])[rows, positions])

    def _clean(self, texts: Tensor, positions: Tensor) -> Chosen:
        """The codes that are not zero in the clean run at these positions, one after the other."""
        subject, _ = self.panel.subject(self.batch)
        codes = subject.codes[self.hook]

        def make() -> tuple[Chosen, Tensor]:
            found = nonzero(codes.flatten(0, 1))
            edges = torch.arange(codes.shape[:2].numel() + 1, device=codes.device)
            return found, torch.searchsorted(found.tokens, edges)

        found, starts = self.panel.kept.take(
            ("active", self.batch, self.hook), make, lambda made: sum(part.numel() * 8 for part in made[0])
        )
        here = texts * codes.shape[1] + positions
        counts = starts[here + 1] - starts[here]
        tokens = torch.repeat_interleave(counts)
        ends = counts.cumsum(0)
        entries = torch.arange(len(tokens), device=tokens.device) + (starts[here] - ends + counts)[tokens]
        return Chosen(found.values[entries], found.features[entries], tokens)

    def _groups(
        self, texts: Tensor, rows: Tensor, positions: Tensor, tokens: Tensor
    ) -> Iterator[tuple[Tensor, slice | Tensor]]:
        """For entries at these tokens the group that each counts for, and which do; spans may share a position."""
        kind = self.panel.positions.kind
        if kind in ("sum", "last"):
            yield torch.zeros_like(tokens), slice(None)
        elif kind == "all":
            yield positions[tokens], slice(None)
        else:
            for group in range(self.masks.shape[1]):
                inside = self.masks[texts[rows], group, positions]
                yield torch.full_like(tokens, group), inside[tokens]


@dataclass(frozen=True)
class Weights:
    """Means over prompts that are above a threshold: of which source, and into which group and feature.

    spread: standard error, and share of the prompts that are above the threshold; None for one prompt. kept, dropped:
    the size of all that are above it, and of all others.
    """

    ends: Int[Tensor, "edge 3"]
    values: Float[Tensor, " edge"]
    spread: Float[Tensor, "edge 2"] | None
    kept: float
    dropped: float


class OnePrompt:
    """Weights of ablations of one prompt, each in a row of its own: only what is above the threshold is kept."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._found: list[tuple[Tensor, Tensor]] = []
        self._kept = self._dropped = 0.0

    def add(self, changes: Changes, sources: Int[Tensor, " row"]) -> None:
        """Take in rows, each of a source."""
        sizes = changes.values.abs()
        strong = sizes > self._threshold
        self._kept += float(sizes[strong].sum())
        self._dropped += float(sizes[~strong].sum())
        ends = torch.stack([sources[changes.rows], changes.groups, changes.features], dim=1)
        self._found.append((ends[strong].cpu(), changes.values[strong].cpu()))

    def weights(self) -> Weights:
        """What is above the threshold."""
        nothing = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0)
        ends, values = (torch.cat(parts) for parts in zip(*(self._found or [nothing]), strict=True))
        return Weights(ends, values, None, self._kept, self._dropped)


class SeveralPrompts:
    """Sums over prompts that come one after the other, of some sources and all that they may lead to."""

    # Bytes of the sums of one place, and of what is made of them at the end.
    PLACE_BYTES = 48

    def __init__(self, shape: tuple[int, int, int], *, n_prompts: int, threshold: float, device: torch.device) -> None:
        """shape: (sources, groups, d_sae)."""
        self._shape, self._n, self._threshold = shape, n_prompts, threshold
        self._total, self._square = (wide(torch.zeros(math.prod(shape), device=device)) for _ in range(2))
        self._active = torch.zeros(math.prod(shape), dtype=torch.int32, device=device)

    def add(self, changes: Changes, sources: Int[Tensor, " row"]) -> None:
        """Take in rows, each of a source and a prompt."""
        _, n_groups, d_sae = self._shape
        places = (sources[changes.rows] * n_groups + changes.groups) * d_sae + changes.features
        values = changes.values.to(self._total)
        self._total.index_add_(0, places, values)
        self._square.index_add_(0, places, values.square())
        self._active.index_add_(0, places, (values.abs() > self._threshold).to(self._active))

    def weights(self) -> Weights:
        """The means that are above the threshold."""
        sizes = (self._total / self._n).abs()
        strong = sizes > self._threshold
        places = strong.nonzero()[:, 0]
        kept = sizes[places].sum()
        mean, count = self._total[places] / self._n, self._n
        variance = (self._square[places] / count - mean.square()).clamp_min(0) * count / (count - 1)
        spread = torch.stack([(variance / count).sqrt(), self._active[places].to(mean) / count], dim=1)
        _, n_groups, d_sae = self._shape
        row_and_group = torch.div(places, d_sae, rounding_mode="floor")
        ends = torch.stack(
            [torch.div(row_and_group, n_groups, rounding_mode="floor"), row_and_group % n_groups, places % d_sae], dim=1
        )
        return Weights(ends.cpu(), mean.cpu(), spread.cpu(), float(kept), float(sizes.sum() - kept))
