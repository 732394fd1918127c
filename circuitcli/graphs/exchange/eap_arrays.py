"""Graphs of EAP-IG and MIB from their .pt files: scores of all edges as one array, sources by targets."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitcli.errors import InputError
from circuitcli.graphs.exchange import eap
from circuitcli.graphs.exchange.eap import Scored
from circuitcli.graphs.exchange.shared import Shared

KEYS = frozenset(("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph"))
_HINT = "write the graph again with Graph.to_pt of EAP-IG"


def read(content: Mapping[str, Any], *, path: Path) -> Shared:
    """The graph of a file. Raises InputError for arrays that do not fit its nodes."""
    sources, targets = ([str(one) for one in content[key]] for key in ("src_nodes", "dst_nodes"))
    found, is_in = np.asarray(content["edges_scores"]), np.asarray(content["edges_in_graph"])
    if found.shape != (len(sources), len(targets)) or is_in.shape != found.shape or not np.isfinite(found).all():
        raise InputError(f"{path}: scores of shape {found.shape} do not fit the nodes", hint=_HINT)
    told = np.asarray(content.get("nodes_scores", np.full(len(sources), np.nan)), dtype=np.float64).reshape(-1)
    scores = {name: float(value) for name, value in zip(sources, told, strict=False) if np.isfinite(value)}
    edges = _edges(sources, targets, found, is_in)
    return eap.graph_of(content["cfg"], scores, edges, name=str(path))


def _edges(sources: list[str], targets: list[str], found: Any, is_in: Any) -> Iterator[Scored]:
    """What has a score or is in the circuit; the array has places for edges that lead backwards too."""
    for row, column in np.argwhere((found != 0) | is_in.astype(bool)).tolist():
        target, _, part = targets[column].partition("<")
        score = float(found[row, column])
        yield Scored(sources[row], target, part.rstrip(">") or None, score, is_in=bool(is_in[row, column]))
