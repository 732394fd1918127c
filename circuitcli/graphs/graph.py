"""What a circuit graph is: a head, nodes and edges, all frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli import display
from circuitcli.hookpoints import OUTPUT, NodeId, logit_token
from circuitcli.records import GraphRecord

if TYPE_CHECKING:
    import networkx
    import pandas


@dataclass(frozen=True)
class Node:
    """A node; ``effect`` is what it contributes to the metric, in the metric's unit; positive supports the metric.

    Of several prompts activation and effect are means, ``standard_error`` is that of the effect, and ``active`` the
    share of the prompts in which the node is not zero. Of a frozen graph ``influence`` is how much a node matters to
    the logits by way of all paths, and ``probability`` that of a logit's token.
    """

    id: str
    activation: float | None = None
    effect: float | None = None
    unit: str | None = None
    standard_error: float | None = None
    active: float | None = None
    influence: float | None = None
    probability: float | None = None

    @property
    def is_output(self) -> bool:
        """Whether this is the metric itself, or an output token."""
        return self.id == OUTPUT or self.token_id is not None

    @property
    def token_id(self) -> int | None:
        """The output token that this is; None for other nodes."""
        return logit_token(self.id)

    @property
    def kind(self) -> str:
        """What it is: ``feature``, ``error``, ``token``, ``logit`` or ``output``."""
        place = self.place
        if place is None:
            return "output" if self.token_id is None else "logit"
        return "error" if place.is_error else "token" if place.is_token else "feature"

    @property
    def place(self) -> NodeId | None:
        """The parsed id; None for the output and for output tokens."""
        return None if self.is_output else NodeId.parse(self.id)


@dataclass(frozen=True)
class Edge:
    """What ``source`` contributes to ``target``, in ``unit``; of several prompts the mean, with its standard error.

    ``active`` is the share of the prompts in which the weight is not zero. ``heads`` are its parts by the head that
    first reads the source, ``5.3`` for head 3 of block 5 (``5.3/qk`` for where that looks), ``stream`` for what passes
    no head, ``others`` for weaker heads; they sum to the weight. ``exact`` is what the metric loses where this edge
    alone is taken away.
    """

    source: str
    target: str
    weight: float
    unit: str
    standard_error: float | None = None
    active: float | None = None
    heads: Mapping[str, float] | None = field(default=None, hash=False)
    exact: float | None = None


@dataclass(frozen=True)
class Trace:
    """How active a feature is at each token of the prompt; 0 at a BOS token, which carries no nodes.

    Of several prompts it is of the one in which the feature is furthest from zero: the ``prompt`` of this number, from
    1, with these ``tokens``.
    """

    feature: str
    activations: tuple[float, ...]
    prompt: int | None = None
    tokens: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CircuitGraph:
    """A circuit with the head that says what it explains and how it was found.

    ``traces`` tell how active its features are at each token of the prompt, where that is known.
    It is a value: `save` and `load` it, `to_pandas` and `to_networkx` hand it on, a notebook draws it.
    """

    head: GraphRecord
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    traces: tuple[Trace, ...] = ()
    by_id: Mapping[str, Node] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {node.id: node for node in self.nodes})

    def trace(self, feature: str) -> Trace | None:
        """How active a feature is along the prompt; None where that is not known."""
        return next((trace for trace in self.traces if trace.feature == feature), None)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        """One line: graphs have thousands of nodes."""
        about = f"{self.head.n_prompts} prompts" if self.head.n_prompts > 1 else repr(self.head.prompt)
        return f"<CircuitGraph '{self.head.name}' of {about}: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def save(self, path: str | Path) -> None:
        """Write the graph to a file, as ``circuit`` commands keep it: JSON lines for head, nodes and edges.

        Raises InputError where nothing can be written.
        """
        from circuitcli.graphs.files import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path, *, name: str | None = None) -> "CircuitGraph":
        """The graph of a file: the last of several, or the one of this name.

        Raises InputError for a file that cannot be read or has no such graph.
        """
        from circuitcli.graphs.files import load

        return load(Path(path), name=name)

    def to_pandas(self) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
        """Nodes and edges as tables, one row each, in the order of the graph.

        Nodes have ``id kind hook layer site feature is_error position token activation effect standard_error active
        unit influence probability``, edges ``source target weight standard_error active unit``. What is not known is
        missing: a feature's number of an error term, a position where nodes are summed over positions. Where several
        prompts have other tokens at a position, ``token`` has some, with " | " between them. Raises ToolError without
        pandas.
        """
        from circuitcli.graphs.tables import to_pandas

        return to_pandas(self)

    def to_networkx(self) -> "networkx.DiGraph":
        """The graph for networkx: nodes by id and edges with the columns of `to_pandas` as attributes, and the head's
        fields as those of the graph. What is not known is left out. Raises ToolError without networkx."""
        from circuitcli.graphs.tables import to_networkx

        return to_networkx(self)

    def _repr_svg_(self) -> str | None:
        return display.drawn(self, "svg")

    def _repr_html_(self) -> str | None:
        return display.drawn(self, "html")


def edges_between(graph: CircuitGraph) -> tuple[tuple[NodeId, NodeId | None], ...]:
    """The edges of a graph from features and errors to later ones, or (None) to what it explains, the strongest first.
    Edges out of anything else, as token embeddings, are no part of what is ablated."""
    places = {node.id: node.place for node in graph.nodes}
    ordered = sorted(graph.edges, key=lambda edge: -abs(edge.weight))
    found = ((places.get(edge.source), places.get(edge.target)) for edge in ordered)
    return tuple(dict.fromkeys((u, d) for u, d in found if u is not None and not u.is_token))


def ablated_nodes(graph: CircuitGraph) -> tuple[NodeId, ...]:
    """The features and errors of a graph: what a test of it keeps or ablates."""
    return tuple(place for node in graph.nodes if (place := node.place) is not None and not place.is_token)


def strongest_nodes(graph: CircuitGraph) -> tuple[NodeId, ...]:
    """The same, those of the largest effects first, or of the largest influence where no effect is known; nothing where
    neither is."""

    def size(node: Node) -> float:
        return abs((node.influence if node.effect is None else node.effect) or 0.0)

    if not any(map(size, graph.nodes)):
        return ()
    return ablated_nodes(CircuitGraph(graph.head, tuple(sorted(graph.nodes, key=lambda node: -size(node)))))
