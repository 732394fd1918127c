"""A circuit graph: features, error terms and the output, with effects and edge weights.

Frozen values and pure functions.

The graph lies this low because attribution makes it, validation reads it and render draws it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import OUTPUT, NodeId, NodeOrder
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord, Record, Stream


@dataclass(frozen=True)
class Node:
    """A node; ``effect`` is what it contributes to the metric, in the metric's unit; positive supports the metric.

    Of several prompts activation and effect are means, ``standard_error`` is that of the effect, and ``active`` the
    share of the prompts in which the node is not zero.
    """

    id: str
    activation: float | None = None
    effect: float | None = None
    unit: str | None = None
    standard_error: float | None = None
    active: float | None = None

    @property
    def is_output(self) -> bool:
        """Whether this is the metric itself."""
        return self.id == OUTPUT

    @property
    def place(self) -> NodeId | None:
        """The parsed id; None for the output."""
        return None if self.is_output else NodeId.parse(self.id)


@dataclass(frozen=True)
class Edge:
    """What ``source`` contributes to ``target``, in ``unit``; of several prompts the mean, with its standard error.

    ``active`` is the share of the prompts in which the weight is not zero.
    """

    source: str
    target: str
    weight: float
    unit: str
    standard_error: float | None = None
    active: float | None = None


@dataclass(frozen=True)
class CircuitGraph:
    """A circuit with the head that says what it explains and how it was found."""

    head: GraphRecord
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    by_id: Mapping[str, Node] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {node.id: node for node in self.nodes})

    def __len__(self) -> int:
        return len(self.nodes)


def _order(node: Node, span_names: Sequence[str] = ()) -> tuple[bool, NodeOrder]:
    place = node.place
    return (True, ((0, 0), (0, ""), 0)) if place is None else (False, place.order_among(span_names))


def sorted_graph(graph: CircuitGraph) -> CircuitGraph:
    """The same graph with nodes in model order and edges by target, then falling strength."""
    names = graph.head.span_names or ()
    nodes = tuple(sorted(graph.nodes, key=lambda node: _order(node, names)))
    rank = {node.id: number for number, node in enumerate(nodes)}
    edges = sorted(graph.edges, key=lambda edge: (rank[edge.target], -abs(edge.weight), rank[edge.source]))
    return replace(graph, nodes=nodes, edges=tuple(edges))


def connected_to_output(graph: CircuitGraph) -> CircuitGraph:
    """Without the nodes that have no path to the output, and without their edges."""
    sources: dict[str, list[str]] = {}
    for edge in graph.edges:
        sources.setdefault(edge.target, []).append(edge.source)
    reached, frontier = {OUTPUT}, [OUTPUT]
    while frontier:
        new = [source for source in sources.get(frontier.pop(), ()) if source not in reached]
        reached.update(new)
        frontier += new
    return restricted(graph, reached)


# What decides a test beside what every head has; heads of earlier versions lack these.
_DECIDING = ("ids", "counterfactual", "counterfactual_ids", "baseline_ids", "prompts_digest", "writes")


def content_digest(graph: CircuitGraph) -> str:
    """``sha256:...`` of what a test of the graph depends on: its nodes, prompt, target, metric, baseline and SAEs."""
    head = graph.head
    content = [sorted(graph.by_id), head.prompt, head.target, head.foil, head.metric, head.baseline, head.saes]
    told = {name: value for name in _DECIDING if (value := getattr(head, name)) is not None}
    text = json.dumps([*content, told] if told else content, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def restricted(graph: CircuitGraph, ids: Iterable[str]) -> CircuitGraph:
    """Only these nodes, and the edges between them."""
    kept = set(ids)
    return replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.id in kept),
        edges=tuple(edge for edge in graph.edges if edge.source in kept and edge.target in kept),
    )


# What the numbers of a graph mean: graphs in which these differ are not joined.
_MEANING = (
    "model",
    "revision",
    "dtype",
    "prompt",
    "ids",
    "method",
    "steps",
    "metric",
    "unit",
    "target",
    "target_id",
    "foil",
    "baseline",
    "positions",
    "span_names",
    "prompts_digest",
)
# What a baseline is taken from.
_BASELINE = {
    "mean": ("baseline_tokens",),
    "counterfactual": ("counterfactual", "counterfactual_ids", "chat"),
    "resample": ("seed", "baseline_ids"),
}
# Heads of an earlier version lack these; what they repeat is compared in any case.
_LATER = ("ids", "target_id")


def check_joinable(old: GraphRecord, new: GraphRecord) -> None:
    """Raise InputError, naming the first difference, unless numbers of both graphs mean the same.

    Model, prompt, method, metric, target, baseline, positions and the spliced hook points with their SAEs must agree:
    edges along direct paths depend on all of these, and so does which nodes have edges to the output.
    """
    for name in (*_MEANING, *_BASELINE.get(new.baseline, ())):
        before, after = getattr(old, name, None), getattr(new, name, None)
        if before != after and not (name in _LATER and None in (before, after)):
            raise _mismatch(name.replace("_", " "), before, after)
    if old.saes.keys() != new.saes.keys():
        raise _mismatch("set of spliced hook points", " ".join(old.saes), " ".join(new.saes))
    for hook in old.saes:
        if old.saes[hook] != new.saes[hook]:
            raise _mismatch(f"SAE at {hook}", old.saes[hook], new.saes[hook])
        if old.written(hook) != new.written(hook):
            raise _mismatch(f"set of hook points written from {hook}", *(" ".join(h.written(hook)) for h in (old, new)))


def merged(old: CircuitGraph, new: CircuitGraph) -> CircuitGraph:
    """Both graphs in one; where both have a node or an edge, the new numbers hold. Raises as `check_joinable` does."""
    check_joinable(old.head, new.head)
    nodes = {node.id: node for node in (*old.nodes, *new.nodes)}
    edges = {(edge.source, edge.target): edge for edge in (*old.edges, *new.edges)}
    return sorted_graph(CircuitGraph(new.head, tuple(nodes.values()), tuple(edges.values())))


def _mismatch(name: str, before: object, after: object) -> InputError:
    return InputError(
        f"the graph to extend has another {name}: {before!r}, not {after!r}",
        hint="make both with the same --method, --metric, --baseline, --positions, --layers, --sites and SAEs, "
        "or leave --extend out",
    )


def to_records(graph: CircuitGraph) -> list[Record]:
    """The head, then one record for each node and each edge."""
    nodes = [NodeRecord(**vars(node)) for node in graph.nodes]
    edges = [EdgeRecord(**vars(edge)) for edge in graph.edges]
    return [graph.head, *nodes, *edges]


def from_records(records: Stream) -> list[CircuitGraph]:
    """All graphs of a stream, each from its head to the next; edges that lost an end to a filter are dropped.

    Raises InputError for a node whose id cannot be read.
    """
    heads: list[tuple[GraphRecord, dict[str, Node], dict[tuple[str, str], Edge]]] = []
    for record in records:
        if isinstance(record, GraphRecord):
            heads.append((record, {}, {}))
        elif isinstance(record, NodeRecord) and heads:
            heads[-1][1][record.id] = _read_node(record)
        elif isinstance(record, EdgeRecord) and heads:
            edge = _read_edge(record)
            heads[-1][2][edge.source, edge.target] = edge
    return [
        CircuitGraph(
            head,
            tuple(nodes.values()),
            tuple(edge for edge in edges.values() if edge.source in nodes and edge.target in nodes),
        )
        for head, nodes, edges in heads
    ]


def _read_node(record: NodeRecord) -> Node:
    node = Node(**{field.name: getattr(record, field.name) for field in fields(Node)})
    try:
        _order(node)
    except SettingsError as error:
        raise InputError(f"node record: {error.message}", hint=error.hint) from None
    return node


def _read_edge(record: EdgeRecord) -> Edge:
    return Edge(**{field.name: getattr(record, field.name) for field in fields(Edge)})
