"""What each feature contributes along gradients, in pieces, so that no coder is too wide.

The contribution of feature i at a position is ``(f_i - f0_i)`` times the sum, over the hook points that its coder
writes, of ``scale * W_dec[i] . gradient``: its effect for a gradient of the metric, an edge for that of a target.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

# Numbers that are in memory at once, a few times over.
AT_ONCE = 2**23


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
