"""Which features of two checkpoints are the same, for circuits that are compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.stages.through import Moment

if TYPE_CHECKING:
    from circuitcli.development.overlap import Pairs


class Pairing:
    """Pairs of features between two checkpoints, or between two seeds of one, at the hook points of some circuits."""

    def __init__(self, settings: Settings, circuits: Sequence[CircuitGraph]) -> None:
        self._least = settings.develop.least
        self._hooks = sorted({HookPoint.parse(name) for graph in circuits for name in graph.head.saes})
        self._known: dict[tuple[str, str], Pairs] = {}

    def between(self, one: Moment, other: Moment) -> "Pairs":
        """Features of ``other`` by those of ``one``."""
        key = (str(one.path), str(other.path))
        if key not in self._known:
            self._known[key] = {hook: self._pairs(one, other, hook) for hook in self._hooks}
        return self._known[key]

    def _pairs(self, one: Moment, other: Moment, hook: HookPoint) -> dict[int, int]:
        from circuitcli.features.matching import matched

        source, target = one.coder(hook), other.coder(hook)
        found = matched(source, target, range(target.d_sae), least=self._least)
        return {own: later for later, (own, _) in found.items()}
