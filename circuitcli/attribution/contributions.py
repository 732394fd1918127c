"""What each feature contributes along a gradient, in pieces, so that no SAE is too wide.

The contribution of feature i at a position is ``scale * W_dec[i] . gradient * (f_i - f0_i)``: its effect for a gradient
of the metric, an edge for that of a target.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Absent
from circuitcli.saes.base import Coded, SparseCoder

# Numbers that are in memory at once, a few times over.
AT_ONCE = 2**23


@dataclass(frozen=True)
class Contributions:
    """Of all features of a hook point, for one gradient or a row of them (``...``)."""

    sae: SparseCoder
    coded: Coded
    absent: Absent
    gradient: Float[Tensor, "... position d_in"]

    def pieces(self) -> Iterator[tuple[slice, Float[Tensor, "... position width"]]]:
        """Some features after the other, with their contributions."""
        n_rows = max(1, self.gradient.shape[:-1].numel())
        width = max(1, AT_ONCE // n_rows)
        for start in range(0, self.sae.d_sae, width):
            features = slice(start, min(start + width, self.sae.d_sae))
            yield features, self._of(features)

    def at(self, index: int) -> Float[Tensor, "... position"]:
        """Those of one feature."""
        return self._of(slice(index, index + 1))[..., 0]

    def dense(self) -> Float[Tensor, "... position d_sae"]:
        """All of them at once."""
        return self._of(slice(0, self.sae.d_sae))

    def total(self) -> float:
        """Their sum over features and positions."""
        return sum(float(values.sum()) for _, values in self.pieces())

    def _of(self, features: slice) -> Tensor:
        difference = self.coded.codes[0, :, features] - self.absent.codes[0, :, features]
        scale = None if self.coded.frame is None else self.coded.frame.scale[0]
        slopes = self.gradient @ self.sae.W_dec[features].T
        return (slopes if scale is None else slopes * scale) * difference
