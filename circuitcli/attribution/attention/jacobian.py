"""The derivative of one block's attention at a clean run, head by head: what each head moves and where it looks.

What attention adds follows what it reads in two ways: a head moves other values, by the pattern that it has (its OV
part), and, unless patterns are constant, its pattern changes with queries and keys (its QK part). Both are linear
here, and sums over heads and over the positions that are read.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.models.attention import Attention, Rotation, Side
from circuitcli.models.projections import Norm


@dataclass(frozen=True)
class Reading:
    """What heads read at one position each, or the derivative of a target by that at every position.

    queries and keys are None where patterns are constant.
    """

    values: Tensor
    queries: Tensor | None
    keys: Tensor | None


@dataclass(frozen=True)
class HeadJacobian:
    """Of the attention of a block where it reads ``x``. is_frozen: patterns and denominators of norms are constant."""

    attention: Attention
    x: Float[Tensor, "1 position d_model"]
    is_frozen: bool

    def pulled(self, gradient: Float[Tensor, "target position d_model"]) -> Reading:
        """Derivatives of targets by values, queries and keys, (target, head, position, width), from those by what
        attention adds."""
        attention = self.attention
        gradient = gradient if attention.after is None else self._through(attention.after, gradient)
        mixed = (gradient @ attention.output.weight).unflatten(-1, (-1, attention.width)).transpose(1, 2)
        values = torch.einsum("hij,thiw->thjw", self._pattern, mixed)
        if self.is_frozen:
            return Reading(values, None, None)
        of_pattern = mixed @ self._values.transpose(1, 2)  # (target, head, query, key)
        mean = (of_pattern * self._pattern).sum(dim=-1, keepdim=True)
        of_scores = self._pattern * (of_pattern - mean) * self._cap_slope * attention.scale
        return Reading(values, of_scores @ self._keys, of_scores.transpose(2, 3) @ self._queries)

    def pushed(self, tangents: Float[Tensor, "source d_model"], positions: Int[Tensor, " source"]) -> Reading:
        """Changes of values, queries and keys, (source, head, width), where what is read changes at one position."""
        attention = self.attention
        values = _shared((tangents @ attention.value.weight.T).unflatten(-1, (-1, attention.width)), attention)
        if self.is_frozen:
            return Reading(values, None, None)
        queries = self._side(attention.query, tangents, positions)
        return Reading(values, queries, _shared(self._side(attention.key, tangents, positions), attention))

    def _side(self, side: Side, tangents: Tensor, positions: Tensor) -> Float[Tensor, "source group width"]:
        changes = (tangents @ side.projection.weight.T).unflatten(-1, (-1, side.width))
        if side.norm is not None:
            projected = side.projected(self.x)[0][:, positions].transpose(0, 1)  # (source, group, width)
            changes = _norm_slope(side.norm, projected, changes)
        if side.rotation is None:
            return changes
        turned = Rotation(side.rotation.cos[positions], side.rotation.sin[positions])
        return turned(changes.transpose(0, 1)).transpose(0, 1)

    def _through(self, norm: Norm, gradient: Tensor) -> Tensor:
        """Derivatives by what a norm reads, from those by what it gives; the norm behind attention."""
        added = self.attention.added((self._pattern @ self._values)[None]).sum(dim=1) + self.attention.output.bias
        normed = norm.normed(added)
        gradient = gradient * norm.gain * normed.scale
        if not self.is_frozen:
            gradient = gradient - normed.x * (gradient * normed.x).mean(dim=-1, keepdim=True)
        return gradient - gradient.mean(dim=-1, keepdim=True) if norm.centres else gradient

    @cached_property
    def _scores(self) -> Float[Tensor, "1 head query key"]:
        return self.attention.scores(self.x)

    @cached_property
    def _pattern(self) -> Float[Tensor, "head query key"]:
        return self.attention.pattern(self._scores)[0]

    @cached_property
    def _cap_slope(self) -> Tensor | float:
        cap = self.attention.soft_cap
        return 1.0 if cap is None else 1.0 - torch.tanh(self._scores[0] / cap).square()

    @cached_property
    def _values(self) -> Float[Tensor, "head position width"]:
        return self.attention.values(self.x)[0]

    @cached_property
    def _queries(self) -> Float[Tensor, "head position width"]:
        return self.attention.query(self.x)[0]

    @cached_property
    def _keys(self) -> Float[Tensor, "head position width"]:
        return self.attention.shared(self.attention.key(self.x))[0]


def _shared(x: Float[Tensor, "source group width"], attention: Attention) -> Float[Tensor, "source head width"]:
    """Of each head, from those of groups."""
    return x.repeat_interleave(attention.n_heads // attention.n_groups, dim=1)


def _norm_slope(norm: Norm, x: Tensor, change: Tensor) -> Tensor:
    """The change of what a norm gives, where its input changes."""
    normed = norm.normed(x)
    change = change - change.mean(dim=-1, keepdim=True) if norm.centres else change
    return norm.gain * normed.scale * (change - normed.x * (change * normed.x).mean(dim=-1, keepdim=True))
