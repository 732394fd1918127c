"""circuit-tracer's own files of attribution graphs (.pt), pruned as that program prunes them for its page.

The file holds a dense matrix of direct effects, targets by sources: features, errors by layer and position, tokens,
logits. Features and errors are of MLPs: ``mlp_in.3/17@4`` and ``mlp.3/error@4``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.shared import Shared, checked, file_name
from circuitcli.graphs.exchange.torch_files import Inert
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.graphs.influence import ERROR, FEATURE, LOGIT, TOKEN, Pruned, Rows, prune, scores
from circuitcli.graphs.pruning import sorted_graph
from circuitcli.hookpoints import HookPoint, NodeId, logit_name
from circuitcli.records import GraphRecord
from circuitcli.schema import UNKNOWN
from circuitcli.settings.graph import BY_INFLUENCE

KEYS = frozenset(("adjacency_matrix", "active_features", "selected_features", "input_tokens"))
ORIGIN = "circuit-tracer"
_HINT = "write the graph again with Graph.to_pt of circuit-tracer"
# By as much the probability of a certain token may be off.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class _Content:
    """The parts of a file, of shapes that fit each other.

    features: layer, position and index of each; logits: token, text and probability.
    """

    matrix: NDArray[Any]
    features: NDArray[Any]
    activations: NDArray[Any]
    tokens: tuple[int, ...]
    logits: tuple[tuple[int, str, float], ...]

    @property
    def n_layers(self) -> int:
        """Layers of the model: each has an error at each position."""
        return (len(self.matrix) - len(self.features) - len(self.logits)) // max(len(self.tokens), 1) - 1

    @property
    def kinds(self) -> NDArray[np.int8]:
        """What each node is."""
        counts = (len(self.features), self.n_layers * len(self.tokens), len(self.tokens), len(self.logits))
        return np.repeat(np.array([FEATURE, ERROR, TOKEN, LOGIT], dtype=np.int8), counts)

    @property
    def orders(self) -> NDArray[np.int32]:
        """Where each node is in the order of the model: tokens, layers, logits."""
        n_tokens, n_layers = len(self.tokens), self.n_layers
        errors = np.repeat(np.arange(n_layers), n_tokens) + 1
        parts = (self.features[:, 0] + 1, errors, np.zeros(n_tokens), np.full(len(self.logits), n_layers + 1))
        return np.concatenate(parts).astype(np.int32)


def read(content: Mapping[str, Any], *, path: Path) -> Shared:
    """The graph of a file, pruned to the usual shares of influence. Raises InputError for parts that do not fit."""
    parts = _parts(content, name=str(path))
    rows = _rows(parts, name=str(path))
    pruned, found = prune(rows, **BY_INFLUENCE), scores(rows)
    head = checked(
        GraphRecord,
        {
            "name": file_name(path.stem, otherwise="graph"),
            "origin": ORIGIN,
            "method": "frozen",
            "metric": UNKNOWN,
            "prompt": content.get("input_string") if isinstance(content.get("input_string"), str) else "",
            "tokens": (),
            "ids": parts.tokens,
            "dtype": str(parts.matrix.dtype),
            "unit": "logits",
            "baseline": UNKNOWN,
            "positions": "all",
            "model": _model(content),
            "logits": {logit_name(token): text for token, text, _ in parts.logits},
            "n_active": int(np.shape(content["active_features"])[0]),
            "n_expanded": len(parts.features),
            **BY_INFLUENCE,
            "replacement": found.replacement,
            "completeness": found.completeness,
            "completeness_of_inputs": found.completeness_of_inputs,
        },
        place=str(path),
        hint=_HINT,
    )
    return Shared(_graph(head, parts, pruned))


def _graph(head: GraphRecord, parts: _Content, pruned: Pruned) -> CircuitGraph:
    names = {number: _name(number, parts) for number in np.nonzero(pruned.nodes)[0].tolist()}
    first_logit = len(parts.matrix) - len(parts.logits)
    nodes = tuple(_node(number, name, parts, pruned) for number, name in names.items())
    rows = pruned.rows
    triples = zip(rows.sources.tolist(), rows.edge_targets.tolist(), rows.values.tolist(), strict=True)
    edges = tuple(
        Edge(names[source], names[target], weight, "logits" if target >= first_logit else "pre-activation")
        for source, target, weight in triples
    )
    return sorted_graph(CircuitGraph(head, nodes, edges))


def _name(number: int, parts: _Content) -> str:
    n_features, n_tokens = len(parts.features), len(parts.tokens)
    if number < n_features:
        layer, position, index = (int(value) for value in parts.features[number])
        return str(NodeId(HookPoint(layer, "mlp_in"), index, position))
    place = number - n_features
    layer, position = divmod(place, n_tokens)
    if layer < parts.n_layers:
        return str(NodeId(HookPoint(layer, "mlp"), None, position))
    if layer == parts.n_layers:
        return str(NodeId(HookPoint(0, "embed"), None, position, is_token=True))
    return logit_name(parts.logits[place - n_tokens * (parts.n_layers + 1)][0])


def _node(number: int, name: str, parts: _Content, pruned: Pruned) -> Node:
    first_logit = len(parts.matrix) - len(parts.logits)
    if number >= first_logit:
        return Node(name, probability=min(parts.logits[number - first_logit][2], 1.0))
    activation = float(parts.activations[number]) if number < len(parts.features) else None
    return Node(name, activation, influence=float(pruned.influence[number]))


def _model(content: Mapping[str, Any]) -> str:
    fields = vars(content["cfg"]) if isinstance(content.get("cfg"), Inert) else {}
    told = [fields.get(name) for name in ("model_name", "tokenizer_name")]
    return next((name[:4000] for name in told if isinstance(name, str) and name), UNKNOWN)


def _parts(content: Mapping[str, Any], *, name: str) -> _Content:
    try:
        active, chosen = np.asarray(content["active_features"]), np.asarray(content["selected_features"])
        features, values = active[chosen], np.asarray(content["activation_values"]).reshape(-1)
        # Values are of all active features, or in older files of those that were selected.
        activations = values[chosen] if len(values) == len(active) else values
        tokens = tuple(int(token) for token in np.asarray(content["input_tokens"]).reshape(-1))
        if not isinstance(content["adjacency_matrix"], np.ndarray):
            raise TypeError("the matrix is not dense")
        parts = _Content(content["adjacency_matrix"], features, activations, tokens, tuple(_logits(content)))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0][:200]
        raise InputError(f"{name}: parts of the graph are missing or of another shape: {said}", hint=_HINT) from None
    _check(parts, name=name)
    return parts


def _logits(content: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    """Token, text and probability of each logit. Older files have no texts."""
    targets = content["logit_targets"] if "logit_targets" in content else content["logit_tokens"]
    for target, probability in zip(targets, np.asarray(content["logit_probabilities"]).tolist(), strict=True):
        if isinstance(target, Inert):
            text, token = target.arguments
            yield int(token), str(text), float(probability)
        elif isinstance(target, tuple):
            yield int(target[1]), str(target[0]), float(probability)
        else:
            yield int(target), "", float(probability)


def _check(parts: _Content, *, name: str) -> None:
    matrix, features, n_tokens = parts.matrix, parts.features, len(parts.tokens)
    n = len(features) + len(parts.logits) + n_tokens * (parts.n_layers + 1)
    if np.ndim(matrix) != 2 or matrix.shape != (n, n) or parts.n_layers < 1 or not n_tokens:
        raise InputError(f"{name}: a matrix of {np.shape(matrix)} does not fit the nodes", hint=_HINT)
    if features.ndim != 2 or features.shape[1] != 3 or len(parts.activations) != len(features):
        raise InputError(f"{name}: features of shape {features.shape} have no layer, position and index", hint=_HINT)
    # A cast would make some number of what is none.
    if features.dtype.kind not in "iuf" or not (np.isfinite(features) & (features == np.floor(features))).all():
        raise InputError(f"{name}: layers, positions and indices of features are not whole numbers", hint=_HINT)
    ends = np.array([parts.n_layers, n_tokens, 2**62])
    if len(features) and ((features < 0).any() or (features >= ends).any()):
        raise InputError(f"{name}: a feature lies outside the model or the prompt", hint=_HINT)
    if not np.isfinite(parts.activations).all():
        raise InputError(f"{name}: an activation is not finite", hint=_HINT)
    for token, _, probability in parts.logits:
        if token < 0 or not 0 <= probability < 1 + _ROUNDING:
            raise InputError(f"{name}: token {token} with the probability {probability:g} is not a logit", hint=_HINT)


def _rows(parts: _Content, *, name: str) -> Rows:
    """The matrix as sparse rows, from the last target to the first."""
    orders = parts.orders
    weights = np.zeros(len(parts.matrix))
    weights[len(weights) - len(parts.logits) :] = [probability for _, _, probability in parts.logits]
    targets = np.argsort(-orders, kind="stable")
    found = [_sources(parts.matrix[target], orders, int(target), name=name) for target in targets.tolist()]
    return Rows(
        kinds=parts.kinds,
        orders=orders,
        weights=weights,
        targets=targets.astype(np.int64),
        starts=np.concatenate([[0], np.cumsum([len(sources) for sources, _ in found])]).astype(np.int64),
        sources=np.concatenate([sources for sources, _ in found]).astype(np.int32),
        values=np.concatenate([values for _, values in found]).astype(np.float64),
    )


def _sources(
    row: NDArray[Any], orders: NDArray[np.int32], target: int, *, name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    sources = np.nonzero(row)[0]
    values = np.asarray(row[sources], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name}: an edge into node {target} is not finite", hint=_HINT)
    if (orders[sources] >= orders[target]).any():
        raise InputError(f"{name}: an edge into node {target} leads backwards in the model", hint=_HINT)
    return sources, values
