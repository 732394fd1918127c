"""Which features of two checkpoints are the same, for circuits that are compared: by the measure and the assignment by
which `circuit develop` matches all features."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.stages.through import Moment

if TYPE_CHECKING:
    from circuitcli.development.overlap import Pairs
    from circuitcli.features.coactivation import Codes
    from circuitcli.saes.base import SparseCoder

# Coders whose codes are in memory at once.
_KEPT = 8


class Pairing:
    """Pairs of features between two checkpoints, or between two seeds of one, at the hook points of some circuits."""

    def __init__(self, settings: Settings, circuits: Sequence[CircuitGraph]) -> None:
        self._settings = settings.develop
        self._hooks = sorted({HookPoint.parse(name) for graph in circuits for name in graph.head.saes})
        self._known: dict[tuple[str, str], Pairs] = {}
        self._coder = lru_cache(_KEPT)(self._encoded)

    def between(self, one: Moment, other: Moment) -> "Pairs":
        """Features of ``other`` by those of ``one``, where they are alike enough to count as one."""
        key = (str(one.path), str(other.path))
        if key not in self._known:
            self._known[key] = {hook: self._pairs(one, other, hook) for hook in self._hooks}
        return self._known[key]

    def _pairs(self, one: Moment, other: Moment, hook: HookPoint) -> dict[int, int]:
        from circuitcli.features.coactivation import likeness
        from circuitcli.features.matching import directions
        from circuitcli.features.pairing import paired

        (source, own), (target, others) = self._coder(one, hook), self._coder(other, hook)
        by = self._settings.by
        alike = directions(source) @ directions(target).T if by == "decoder" else likeness(own, others, by)
        live = {"live_source": own.live, "live_target": others.live}
        return paired(alike, assignment=self._settings.assignment, **live).at_least(self._settings.least)

    def _encoded(self, moment: Moment, hook: HookPoint) -> "tuple[SparseCoder, Codes]":
        """A coder, and its codes of the first tokens of the run."""
        from circuitcli.activations.cache import ActivationCache
        from circuitcli.features.coactivation import codes_of

        coder = moment.coder(hook)
        cache = ActivationCache(moment.path / "activations", coder.reads)
        return coder, codes_of(coder, cache, n_tokens=self._settings.tokens)
