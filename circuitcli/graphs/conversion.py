"""Graphs from records and to records."""

from dataclasses import fields

from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs.graph import CircuitGraph, Edge, Node, Trace
from circuitcli.graphs.pruning import node_order, restricted
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord, Record, Stream, TraceRecord


def to_records(graph: CircuitGraph) -> list[Record]:
    """The head, then one record for each node, each trace and each edge."""
    nodes = [NodeRecord(**vars(node)) for node in graph.nodes]
    edges = [EdgeRecord(**vars(edge)) for edge in graph.edges]
    traces = [TraceRecord(**vars(trace)) for trace in graph.traces]
    return [graph.head, *nodes, *traces, *edges]


def from_records(records: Stream) -> list[CircuitGraph]:
    """All graphs of a stream, each from its head to the next; edges that lost an end to a filter are dropped, and
    so are traces of features that have no node left.

    Raises InputError for a node whose id cannot be read.
    """
    heads: list[tuple[GraphRecord, dict[str, Node], dict[tuple[str, str], Edge], dict[str, Trace]]] = []
    for record in records:
        if isinstance(record, GraphRecord):
            heads.append((record, {}, {}, {}))
        elif isinstance(record, NodeRecord) and heads:
            heads[-1][1][record.id] = _read_node(record)
        elif isinstance(record, EdgeRecord) and heads:
            edge = _read_edge(record)
            heads[-1][2][edge.source, edge.target] = edge
        elif isinstance(record, TraceRecord) and heads:
            heads[-1][3][record.feature] = _read_trace(record)
    return [
        restricted(CircuitGraph(head, tuple(nodes.values()), tuple(edges.values()), tuple(traces.values())), nodes)
        for head, nodes, edges, traces in heads
    ]


def _read_node(record: NodeRecord) -> Node:
    node = Node(**{field.name: getattr(record, field.name) for field in fields(Node)})
    try:
        node_order(node)
    except SettingsError as error:
        raise InputError(f"node record: {error.message}", hint=error.hint) from None
    return node


def _read_edge(record: EdgeRecord) -> Edge:
    return Edge(**{field.name: getattr(record, field.name) for field in fields(Edge)})


def _read_trace(record: TraceRecord) -> Trace:
    return Trace(**{field.name: getattr(record, field.name) for field in fields(Trace)})
