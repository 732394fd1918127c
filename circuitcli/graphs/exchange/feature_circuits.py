"""Circuits of feature-circuits (Marks et al. 2024, arXiv:2403.19647), read from their .pt files.

``nodes`` has the effect of every feature of every hook point, with the SAE's error as one more at the end, at each
position or summed over them; ``edges`` those from features past a threshold, upstream by downstream name, with the
downstream places first in each tensor. As there, a node is drawn whose effect is past a threshold, and an edge between
two of them that is past another; both stand in the file's name. Effects have the sign that ours have: theirs is the
change of ``foil - target`` from the clean to the patched run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.shared import Shared, checked, file_name
from circuitcli.graphs.exchange.torch_files import Inert, Sparse
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.graphs.pruning import sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.records import GraphRecord
from circuitcli.schema import UNKNOWN

KEYS = frozenset(("nodes", "edges", "examples"))
ORIGIN = "feature-circuits"
# Theirs, where the file's name tells none.
NODE_THRESHOLD, EDGE_THRESHOLD = 0.2, 0.02
# Effects of some metrics are all small: then the strongest nodes are taken.
MOST_NODES = 100
_OUT = "y"
_NAME = re.compile(r"(?P<site>attn|mlp|resid)_(?P<layer>[0-9]{1,4})|(?P<embed>embed)")
_HINT = "write the circuit again with circuit.py of feature-circuits"

Place = tuple[int, ...]


def read(content: Mapping[str, Any], *, path: Path) -> Shared:
    """The circuit of a file. Raises InputError for parts that do not fit each other."""
    name = str(path)
    nodes, edges = content["nodes"], content["edges"]
    edges = {} if edges is None else edges
    if not isinstance(nodes, dict) or not isinstance(edges, dict):
        raise InputError(f"{name}: nodes and edges are by the names of hook points", hint=_HINT)
    if unknown := [key for key in nodes if key != _OUT and not (isinstance(key, str) and _NAME.fullmatch(key))]:
        raise InputError(f"{name}: {unknown[0]!r:.60} is not a hook point of feature-circuits", hint=_HINT)
    effects = {key: _effects(act, f"{name}: {key}") for key, act in nodes.items() if key != _OUT}
    node_threshold, edge_threshold = _thresholds(path)
    kept = _kept(effects, node_threshold)
    ids = {(key, place): _id(key, place, effects[key]) for key, places in kept.items() for place in places}
    made = [Node(identity, effect=float(effects[key][place]), unit="score") for (key, place), identity in ids.items()]
    found = [edge for edge in _edges(edges, effects, ids, name) if abs(edge.weight) > edge_threshold]
    head = _head(content, effects, path)
    return Shared(sorted_graph(CircuitGraph(head, (*made, Node(OUTPUT)), tuple(found))))


def _effects(act: Any, name: str) -> NDArray[Any]:
    """Effects of the features of a hook point, then of its error: (position,) feature."""
    fields = vars(act) if isinstance(act, Inert) else {}
    features, errors = fields.get("act"), fields.get("resc")
    if not isinstance(features, np.ndarray) or features.ndim not in (1, 2):
        raise InputError(f"{name}: effects have no act of one or two axes", hint=_HINT)
    if not isinstance(errors, np.ndarray) or errors.shape != (*features.shape[:-1], 1):
        raise InputError(f"{name}: effects have no resc, the contracted error", hint=_HINT)
    found = np.concatenate([features, errors], axis=-1)
    if not np.isfinite(found).all():
        raise InputError(f"{name}: an effect is not finite", hint=_HINT)
    return found


def _thresholds(path: Path) -> tuple[float, float]:
    """Of nodes and edges, from the file's name: ..._node0.1_edge0.01_..."""
    told = [re.search(rf"_{part}([0-9]*\.?[0-9]+)", path.stem) for part in ("node", "edge")]
    usual = (NODE_THRESHOLD, EDGE_THRESHOLD)
    node, edge = (float(found[1]) if found else value for found, value in zip(told, usual, strict=True))
    return node, edge


def _kept(effects: Mapping[str, NDArray[Any]], threshold: float) -> dict[str, list[Place]]:
    sizes = np.sort(np.concatenate([np.abs(values).ravel() for values in effects.values()] or [np.zeros(0)]))[::-1]
    if len(sizes) and sizes[0] <= threshold:
        threshold = float(sizes[MOST_NODES]) if len(sizes) > MOST_NODES else 0.0
    return {
        key: [tuple(map(int, place)) for place in np.argwhere(np.abs(values) > threshold)]
        for key, values in effects.items()
    }


def _hook(key: str) -> HookPoint:
    found = _NAME.fullmatch(key)
    if found is None or found["embed"]:
        return HookPoint(0, "embed")
    return HookPoint(int(found["layer"]), found["site"])


def _id(key: str, place: Place, values: NDArray[Any]) -> str:
    *position, index = place
    is_error = index == values.shape[-1] - 1
    return str(NodeId(_hook(key), None if is_error else index, position[0] if position else None))


def _edges(
    edges: Mapping[str, Any],
    effects: Mapping[str, NDArray[Any]],
    ids: Mapping[tuple[str, Place], str],
    name: str,
) -> Iterator[Edge]:
    """Edges between nodes that are kept; those into the output are the nodes' own effects."""
    for upstream, targets in edges.items():
        for downstream, weights in targets.items() if isinstance(targets, dict) else ():
            is_out = downstream == _OUT
            if upstream not in effects or not (is_out or downstream in effects):
                raise InputError(f"{name}: an edge from {upstream!r:.40} to {downstream!r:.40}", hint=_HINT)
            shape = (*(() if is_out else effects[downstream].shape), *effects[upstream].shape)
            n = 0 if is_out else effects[downstream].ndim
            for place, weight in _summed(weights, shape, f"{name}: {upstream} -> {downstream}").items():
                source = ids.get((upstream, place[n:]))
                target = OUTPUT if is_out else ids.get((downstream, place[:n]))
                if source is not None and target is not None:
                    yield Edge(source, target, weight, "score")


def _summed(weights: Any, shape: tuple[int, ...], name: str) -> dict[Place, float]:
    """The weights by their places. Raises InputError for a tensor of another shape."""
    if isinstance(weights, np.ndarray) and weights.shape == shape and np.isfinite(weights).all():
        places = np.argwhere(weights)
        return {tuple(map(int, place)): float(weights[tuple(place)]) for place in places}
    if not isinstance(weights, Sparse) or weights.shape != shape or not np.isfinite(weights.values).all():
        raise InputError(f"{name}: weights do not fit {shape}", hint=_HINT)
    found: dict[Place, float] = {}
    for place, value in zip(weights.indices.T.tolist(), weights.values.tolist(), strict=True):
        found[tuple(place)] = found.get(tuple(place), 0.0) + value
    return found


def _head(content: Mapping[str, Any], effects: Mapping[str, NDArray[Any]], path: Path) -> GraphRecord:
    examples = content["examples"] if isinstance(content["examples"], list) else []
    first = examples[0] if examples and isinstance(examples[0], dict) else {}
    # Pairs have a prompt to patch with, clusters only a context.
    is_pair = isinstance(first.get("patch_prefix"), str)
    prompt = first.get("clean_prefix", first.get("context", ""))
    has_positions = any(values.ndim == 2 for values in effects.values())
    told = {
        "name": file_name(path.stem, otherwise="circuit"),
        "origin": ORIGIN,
        "method": "grad-ig",
        "metric": "logit-diff" if is_pair else UNKNOWN,
        "prompt": "".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt),
        "tokens": (),
        "dtype": str(next(iter(effects.values())).dtype) if effects else UNKNOWN,
        "unit": "score",
        "baseline": "counterfactual" if is_pair else "zero" if first else UNKNOWN,
        "positions": "all" if has_positions else "sum",
        "model": path.stem.partition("_")[0] or UNKNOWN,
        "n_prompts": max(len(examples), 1),
        "n_positions": next(iter(effects.values())).shape[0] if has_positions else None,
    }
    return checked(GraphRecord, told, place=str(path), hint=_HINT)
