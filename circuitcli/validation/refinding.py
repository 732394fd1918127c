"""Finding a graph's circuit again: by its own settings, on other samples, through other coders, without some nodes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.resampled import one_by_one, resampled, without_nodes
from circuitcli.attribution.selection import find_circuit
from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.cumulative import pruned_by_influence
from circuitcli.hookpoints import NodeId
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings
from circuitcli.validation.stability import Found, check_gradient, method_of

# What a head tells that settings of a search are called too, but that says what is explained, not how.
_NOT_HOW = frozenset({"prompt", "prompts", "n_prompts", "target", "foil", "chat", "name", "counterfactual", "to"})


def settings_of(head: GraphRecord, settings: GraphSettings) -> GraphSettings:
    """The settings with which a graph was found, as far as its head tells them; of those at hand the batches alone."""
    told: dict[str, Any] = {
        name: value
        for name in GraphSettings.model_fields
        if name not in _NOT_HOW and (value := getattr(head, name, None)) is not None
    }
    told["method"], told["refine"] = method_of(head), head.refined or 0
    if head.steps is not None and told["method"] not in OF_ONE_GRADIENT:
        told["ig_steps"] = head.steps
    return GraphSettings(batch_size=settings.batch_size).model_copy(update=told)


@dataclass(frozen=True)
class Refinder:
    """The prompts of a graph, its settings and its head; ``panel`` may have any batches and positions."""

    panel: Panel
    settings: GraphSettings
    head: GraphRecord

    @classmethod
    def of(cls, panel: Panel, head: GraphRecord, settings: GraphSettings) -> "Refinder":
        """For a graph with this head. Raises InputError for one of single ablations."""
        check_gradient(head)
        positions = Positions.of(head.positions, panel.prompts)
        return cls(one_by_one(replace(panel, positions=positions)), settings_of(head, settings), head)

    def on(self, numbers: Sequence[int] | None = None) -> Found:
        """The circuit on the prompts of these numbers, by default on all."""
        panel = self.panel if numbers is None else resampled(self.panel, numbers)
        return Found.of(self._graph(panel))

    def without(self, nodes: Iterable[NodeId]) -> CircuitGraph:
        """The graph that is found where these are no nodes."""
        return self._graph(without_nodes(self.panel, nodes))

    def _graph(self, panel: Panel) -> CircuitGraph:
        graph = find_circuit(panel, self.settings).graph(self.head)
        if not self.settings.prunes_by_influence:
            return graph
        return pruned_by_influence(graph, **self.settings.shares_of_influence)

    @cached_property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.panel.n_prompts
