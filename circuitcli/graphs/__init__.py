"""A circuit graph: features, error terms and the output, with effects and edge weights.

Frozen values and pure functions.

The graph lies this low because attribution makes it, validation reads it and render draws it.
"""

from circuitcli.graphs.conversion import from_records, to_records
from circuitcli.graphs.graph import CircuitGraph, Edge, Node, Trace, ablated_nodes, edges_between, strongest_nodes
from circuitcli.graphs.joining import check_joinable, content_digest, merged
from circuitcli.graphs.pruning import restricted, sorted_graph

__all__ = [
    "CircuitGraph",
    "Edge",
    "Node",
    "Trace",
    "ablated_nodes",
    "check_joinable",
    "content_digest",
    "edges_between",
    "from_records",
    "merged",
    "restricted",
    "sorted_graph",
    "strongest_nodes",
    "to_records",
]
