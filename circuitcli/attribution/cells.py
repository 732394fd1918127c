"""What sources contribute to targets, kept only where it is not zero, summed up over positions and prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.averages import Average
from circuitcli.attribution.contributions import Sparse
from circuitcli.attribution.panel import wide

ERROR = -1


@dataclass(frozen=True)
class Cells:
    """Values of pairs of a target and a source; a source is a group of positions and a feature, or `ERROR`.

    total, square: sums over prompts, of values and of their squares. active: in how many it is not zero.
    """

    target: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    node: Int[Tensor, " n"]
    total: Float[Tensor, " n"]
    square: Float[Tensor, " n"]
    active: Int[Tensor, " n"]

    @classmethod
    def of(
        cls, parts: Sparse, *, masks: Bool[Tensor, "row group spliced"], targets: Int[Tensor, " row"], apart: bool
    ) -> "Cells":
        """Contributions in rows, each of one prompt and to one target, added up over the positions of each group.

        apart: whether each position is a group by itself.
        """
        row, group, value = parts.row, parts.position, wide(parts.value)
        feature = parts.feature
        if not apart:
            # A position may be in several groups.
            entry, group = masks[row, :, parts.position].nonzero(as_tuple=True)
            row, feature, value = row[entry], feature[entry], value[entry]
            summed = _added((row, group, feature), (value,))
            row, group, feature = summed.keys
            (value,) = summed.sums
        kept = value != 0
        return cls._of_prompts(targets[row[kept]], group[kept], feature[kept], value[kept], targets=targets)

    @classmethod
    def _of_prompts(
        cls,
        target: Int[Tensor, " n"],
        group: Int[Tensor, " n"],
        node: Int[Tensor, " n"],
        value: Float[Tensor, " n"],
        *,
        targets: Int[Tensor, " row"],
    ) -> "Cells":
        """Values of single prompts, those of one target in several prompts added up."""
        sums = value, value.square(), torch.ones_like(target)
        if len(targets.unique()) == len(targets):
            return cls(target, group, node, *sums)
        found = _added((target, group, node), sums)
        return cls(*found.keys, *found.sums)

    @classmethod
    def of_errors(cls, values: Float[Tensor, "row group"], *, targets: Int[Tensor, " row"]) -> "Cells":
        """What one error contributes in rows, each of one prompt and to one target."""
        row, group = values.nonzero(as_tuple=True)
        node = torch.full_like(row, ERROR)
        return cls._of_prompts(targets[row], group, node, wide(values[row, group]), targets=targets)

    @classmethod
    def merged(cls, parts: Sequence["Cells"]) -> "Cells":
        """The sums of several."""
        if len(parts) == 1:
            return parts[0]
        joined = cls.joined(parts)
        found = _added((joined.target, joined.group, joined.node), (joined.total, joined.square, joined.active))
        return cls(*found.keys, *found.sums)

    @classmethod
    def joined(cls, parts: Sequence["Cells"]) -> "Cells":
        """Several, one after the other, which are of other sources."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.total)

    def at(self, chosen: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> "Cells":
        """Some of them."""
        return Cells(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def strongest(self, count: int) -> Int[Tensor, " m"]:
        """Where the ``count`` largest and the ``count`` most negative of each target are, target by target, the largest
        first; of equals those that come first."""
        is_negative = (self.total < 0).to(torch.int64)
        return strongest_of(self.total.abs(), 2 * self.target + is_negative, count)

    def averages(self, n_prompts: int) -> list[Average]:
        """Means over all prompts, those with a value of zero among them."""
        mean = self.total / n_prompts
        if n_prompts == 1:
            return [Average(value) for value in mean.tolist()]
        variance = (self.square / n_prompts - mean.square()).clamp_min(0) * n_prompts / (n_prompts - 1)
        errors = (variance / n_prompts).sqrt()
        shares = self.active.to(mean) / n_prompts
        triples = zip(mean.tolist(), errors.tolist(), shares.tolist(), strict=True)
        return [Average(value, error, share) for value, error, share in triples]


def strongest_of(size: Float[Tensor, " n"], segment: Int[Tensor, " n"], count: int) -> Int[Tensor, " m"]:
    """Where the ``count`` largest of each segment are, segment by segment, the largest first."""
    order = size.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    ordered = segment[order]
    first = torch.searchsorted(ordered, ordered)
    return order[torch.arange(len(order), device=order.device) - first < count]


@dataclass(frozen=True)
class _Added:
    keys: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]


def _added(keys: tuple[Int[Tensor, " n"], ...], values: Iterable[Tensor]) -> _Added:
    """Values of equal keys added up, in the order of the keys."""
    if not len(keys[0]):
        return _Added(keys, tuple(values))
    joined = keys[0]
    sizes = [int(key.max()) + 2 for key in keys]
    for key, size in zip(keys[1:], sizes[1:], strict=True):
        joined = joined * size + key + 1
    unique, where = joined.unique(return_inverse=True)
    apart = []
    for size in reversed(sizes[1:]):
        apart.append(unique % size - 1)
        unique = unique // size
    sums = tuple(value.new_zeros(len(unique)).index_add_(0, where, value) for value in values)
    return _Added((unique, *reversed(apart)), sums)
