"""What each feature contributes along gradients, in pieces, so that no coder is too wide.

The contribution of feature i at a position is ``(f_i - f0_i)`` times the sum, over the hook points that its coder
writes, of ``scale * W_dec[i] . gradient``: its effect for a gradient of the metric, an edge for that of a target.
A feature that is at its baseline contributes nothing, so where few are not, only those are projected on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline, differs
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

# Numbers that are in memory at once, a few times over.
AT_ONCE = 2**23
# The other way of computing takes all features: cheaper where more than this share of them is not at its baseline.
_FEW = 1 / 16


@dataclass(frozen=True)
class Sparse:
    """Contributions that may not be zero, each of a row, a position and a feature."""

    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    value: Float[Tensor, " n"]


@dataclass(frozen=True)
class Contributions:
    """Of all features of a coder, for a row of gradients each.

    difference: ``f - f0`` of each text, or of all alike. gradients: by the hook point that is written, those that there
    are. texts: which text each row is about; None for each once.
    """

    coder: SparseCoder
    codes: Float[Tensor, "text position d_sae"]
    absent: Float[Tensor, "_ _ d_sae"]
    scale: Float[Tensor, "text position 1"] | None
    gradients: Mapping[HookPoint, Float[Tensor, "row position d_out"]]
    texts: Int[Tensor, " row"] | None = None

    @classmethod
    def of(
        cls,
        subject: Subject,
        hook: HookPoint,
        baseline: Baseline,
        gradients: Mapping[HookPoint, Float[Tensor, "row position d_out"]],
        *,
        texts: Int[Tensor, " row"] | None = None,
    ) -> "Contributions":
        """Those of the coder that reads a hook point."""
        coder = subject.coders[hook]
        own = {place: gradients[place] for place in coder.writes if place in gradients}
        return cls(coder, subject.codes[hook], baseline.codes[hook], subject.scale(hook), own, texts)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.gradients.values())))

    def pieces(self) -> Iterator[tuple[slice, Float[Tensor, "row position width"]]]:
        """Some features after the other, with their contributions."""
        first = next(iter(self.gradients.values()))
        width = max(1, AT_ONCE // max(1, first.shape[:-1].numel()))
        for start in range(0, self.coder.d_sae, width):
            features = slice(start, min(start + width, self.coder.d_sae))
            yield features, self._of(features)

    def at(self, indices: Sequence[int]) -> Float[Tensor, "row position feature"]:
        """Those of some features."""
        return self._of(torch.tensor(indices, dtype=torch.int64, device=self.codes.device))

    def dense(self) -> Float[Tensor, "row position d_sae"]:
        """All of them at once."""
        return self._of(slice(0, self.coder.d_sae))

    def sparse(self, least: float = 0.0) -> Iterator[Sparse]:
        """Those of features that are not at their baseline, in pieces that each hold all positions of the rows and
        features that they hold; of size ``least`` at least, as far as a bound on it shows without computing them."""
        for text in self._texts.unique().tolist():
            rows = (self._texts == text).nonzero()[:, 0]
            wanted = differs(*self._both(text))
            if least > 0 and int(wanted.sum()) > _FEW * wanted.numel():
                wanted &= self._bound(text, rows) >= least
            if int(wanted.sum()) > _FEW * wanted.numel():
                yield from self._of_all(rows, wanted, least)
            elif bool(wanted.any()):
                yield from self._of_few(text, rows, wanted)

    def _bound(self, text: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "position d_sae"]:
        """What a contribution to one of some rows is not above: the product of the lengths of what is multiplied."""
        total = torch.zeros_like(self.codes[0])
        for hook, gradient in self.gradients.items():
            largest = gradient[rows].norm(dim=-1).amax(dim=0)  # (position,)
            total += largest[:, None] * self.coder.decoder(hook).norm(dim=-1)
        codes, absent = self._both(text)
        scale = 1.0 if self.scale is None else _own(self.scale, text)
        return total * (codes - absent).abs() * scale

    def _both(self, text: int) -> tuple[Float[Tensor, "position d_sae"], Float[Tensor, "_ d_sae"]]:
        """A text's codes, and those of its baseline."""
        return _own(self.codes, text), _own(self.absent, text)

    def _of_all(
        self, rows: Int[Tensor, " row"], wanted: Bool[Tensor, "position d_sae"], least: float
    ) -> Iterator[Sparse]:
        own = replace(
            self,
            gradients={hook: gradient[rows] for hook, gradient in self.gradients.items()},
            texts=self._texts[rows],
        )
        for features, values in own.pieces():
            kept = (wanted[:, features] & (values.abs() >= least) & (values != 0)).nonzero(as_tuple=True)
            yield Sparse(rows[kept[0]], kept[1], kept[2] + features.start, values[kept])

    @property
    def _texts(self) -> Int[Tensor, " row"]:
        return torch.arange(self.n_rows, device=self.codes.device) if self.texts is None else self.texts

    def _of_few(self, text: int, rows: Int[Tensor, " row"], wanted: Bool[Tensor, "position d_sae"]) -> Iterator[Sparse]:
        position, feature = wanted.nonzero(as_tuple=True)
        codes, absent = self._both(text)
        difference = codes[position, feature] - absent.expand_as(codes)[position, feature]
        if self.scale is not None:
            difference = difference * _own(self.scale, text)[position, 0]
        # Each position's features side by side, filled up with the first feature, whose products are not used.
        counts = torch.bincount(position, minlength=len(wanted))
        place = torch.arange(len(position), device=position.device) - (counts.cumsum(0) - counts)[position]
        table = feature.new_zeros(len(wanted), int(counts.max()))
        table[position, place] = feature
        size = max(1, AT_ONCE // max(1, len(position)))
        for some in rows.split(size):
            values = self._products(some, table)[:, position, place] * difference  # (row, entry)
            yield Sparse(
                some.repeat_interleave(len(position)),
                position.repeat(len(some)),
                feature.repeat(len(some)),
                values.flatten(),
            )

    def _products(
        self, rows: Int[Tensor, " row"], table: Int[Tensor, "position some"]
    ) -> Float[Tensor, "row position some"]:
        """Gradients times the decoder rows of each position's own features, a few positions at a time."""
        parts = []
        size = max(1, AT_ONCE // max(1, table.shape[1] * self.coder.d_out))
        for first in range(0, len(table), size):
            places = slice(first, min(first + size, len(table)))
            total = None
            for hook, gradient in self.gradients.items():
                chosen = self.coder.decoder(hook)[table[places]]  # (position, some, d_out)
                part = torch.bmm(gradient[rows][:, places].transpose(0, 1), chosen.transpose(1, 2))
                total = part if total is None else total + part
            assert total is not None
            parts.append(total.transpose(0, 1))
        return torch.cat(parts, dim=1)

    def total(self) -> float:
        """Their sum over rows, features and positions."""
        return sum(float(values.sum()) for _, values in self.pieces())

    def _of(self, features: slice | Tensor) -> Tensor:
        difference = self.codes[..., features] - self.absent[..., features]
        slopes = None
        for hook, gradient in self.gradients.items():
            part = gradient @ self.coder.decoder(hook)[features].T
            slopes = part if slopes is None else slopes + part
        assert slopes is not None
        scale = self.scale
        if self.texts is not None and len(self.codes) > 1:
            difference, scale = difference[self.texts], None if scale is None else scale[self.texts]
        return (slopes if scale is None else slopes * scale) * difference


def _own(values: Float[Tensor, "text ..."], text: int) -> Tensor:
    """What belongs to a text, or to all alike."""
    return values[text if len(values) > 1 else 0]
