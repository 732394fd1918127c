"""All nodes by the size of their mean effect, and the circuits of the strongest."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.averages import Means
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import LAST, Positions, where
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId, Position
from circuitcli.progress import task
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings
from circuitcli.validation.circuits import Kept, kept_nodes


def positions_of(nodes: Iterable[NodeId], prompts: Sequence[Prompt]) -> Positions:
    """The positions at which these nodes stand, as those of all nodes."""
    names = {node.position for node in nodes}
    numbers = {name for name in names if isinstance(name, int)}
    if numbers:
        return Positions.of("last" if numbers == {prompts[0].last} else "all", prompts)
    words = {name for name in names if isinstance(name, str)}
    return Positions.of("sum" if not words else "last" if words == {LAST} else "spans", prompts)


@dataclass(frozen=True)
class _Part:
    """The nodes of one kind of a hook point that have an effect: group and index, and its size."""

    hook: HookPoint
    is_error: bool
    groups: Int[Tensor, " node"]
    indices: Int[Tensor, " node"]
    sizes: Float[Tensor, " node"]


@dataclass(frozen=True)
class Ranking:
    """All nodes with an effect, hook point by hook point; ``names`` are those of the groups of positions."""

    names: tuple[Position, ...]
    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, panel: Panel, settings: GraphSettings, positions: Positions) -> "Ranking":
        """Of the mean effects over a panel's prompts, of nodes at these positions.

        Methods that ablate each node are given up for integrated gradients: this is about all nodes there are.
        """
        asked = settings.method.removesuffix("-refined")
        method = asked if asked in OF_ONE_GRADIENT else "ig"
        chosen = settings.model_copy(update={"method": method})
        effects = PanelEffects(replace(panel, positions=positions), chosen)
        with task("all effects", total=len(panel.hooks), unit="hook points") as advance:
            parts: list[_Part] = []
            for hook in panel.hooks:
                parts += _parts(effects, hook)
                advance()
        return cls(positions.names, tuple(parts))

    def __len__(self) -> int:
        return sum(len(part.sizes) for part in self.parts)

    @property
    def features(self) -> "Ranking":
        """Without errors."""
        return Ranking(self.names, tuple(part for part in self.parts if not part.is_error))

    def nodes(self, count: int) -> list[NodeId]:
        """The strongest so many, hook point by hook point."""
        return [
            NodeId(part.hook, None if part.is_error else index, self.names[group])
            for part, chosen in self._strongest(count)
            for group, index in zip(part.groups[chosen].tolist(), part.indices[chosen].tolist(), strict=True)
        ]

    def kept(self, subject: Subject, count: int) -> Kept:
        """The circuit of the strongest so many in a subject. Raises InputError for a position that it lacks."""
        found = kept_nodes(subject, ())
        n_texts = subject.n_texts if any(isinstance(name, str) for name in self.names) else 1
        features = {hook: mask.repeat(n_texts, 1, 1) for hook, mask in found.features.items()}
        errors = {hook: mask.repeat(n_texts, 1) for hook, mask in found.errors.items()}
        places = [where(subject.prompts[:n_texts], name, subject.adapter.device) for name in self.names]
        for part, chosen in self._strongest(count):
            groups, indices = part.groups[chosen], part.indices[chosen].to(subject.adapter.device)
            for group in groups.unique().tolist():
                texts, positions = places[group].nonzero().unbind(1)
                if part.is_error:
                    errors[part.hook][texts, positions] = True
                    continue
                own = indices[(groups == group).to(indices.device)]
                features[part.hook][texts[:, None], positions[:, None], own[None]] = True
        return Kept(features, errors)

    @cached_property
    def _ranks(self) -> list[Int[Tensor, " node"]]:
        """The place of each part's nodes among all, the strongest first; of equal ones the first in the model."""
        sizes = torch.cat([part.sizes for part in self.parts]) if self.parts else torch.zeros(0)
        order = sizes.argsort(descending=True, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order))
        return list(ranks.split([len(part.sizes) for part in self.parts]))

    def _strongest(self, count: int) -> Iterator[tuple[_Part, Tensor]]:
        """Of each part those among the strongest so many."""
        return ((part, ranks < count) for part, ranks in zip(self.parts, self._ranks, strict=True))


def _parts(effects: PanelEffects, hook: HookPoint) -> Iterator[_Part]:
    if hook in effects.coders:
        for means in effects.of_features(hook):
            yield _part(means, hook, is_error=False)
    if effects.coders.writers(hook):
        for means in effects.of_error(hook):
            yield _part(means, hook, is_error=True)


def _part(means: Means, hook: HookPoint, *, is_error: bool) -> _Part:
    """What of a piece's means is not zero; sizes in float32, which is enough to rank by."""
    sizes = means.values[0].abs().float().cpu()  # (group, width)
    groups, columns = sizes.nonzero().unbind(1)
    indices = torch.tensor([index or 0 for index in means.piece.indices])
    return _Part(hook, is_error, groups, indices[columns], sizes[groups, columns])
