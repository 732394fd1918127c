"""Neuronpedia's files of attribution graphs (schema version 1), which circuit-tracer's page reads too.

A node of the file has the numbers by which that page finds features: its layer, and as ``feature`` the layer and the
feature's index in one number. Ids are ``LAYER_FEATURE_COLUMN`` of features, as circuit-tracer has them, but
``LAYER_error_SITE_COLUMN`` of errors: circuit-tracer's ids of errors are also those of features of layer 0. Where a
graph has several hook points to a layer, rows take the place of layers (`numbering`).

What the schema has no place for stands beside it under ``circuit``, which pages leave alone: the whole head, and of
nodes and edges all else that a graph of ours has. A file that was written here is therefore read as it was.
"""

import math
from collections.abc import Mapping
from typing import Any

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.numbering import Numbering
from circuitcli.graphs.exchange.shared import Shared, bare, file_name
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.graphs.ranking import influences
from circuitcli.hookpoints import NodeId
from circuitcli.records import GraphRecord

SCHEMA_VERSION = 1
# All that a page can count to.
LARGEST_NUMBER = 2**53 - 1
FEATURE, ERROR, TOKEN, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
# Under this name stands what only we read.
OWN = "circuit"


def pair(layer: int, index: int) -> int:
    """A layer and a feature's index in one number: Cantor's pairing."""
    return (layer + index) * (layer + index + 1) // 2 + index


def unpair(number: int) -> tuple[int, int]:
    """The layer and the index of which this is the `pair`."""
    total = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - total * (total + 1) // 2
    return total - index, index


def content(shared: Shared, *, slug: str, scan: str, source_set: str | None, version: str) -> dict[str, Any]:
    """The file of a graph, as a tree of JSON values.

    slug: the graph's name there. scan: Neuronpedia's name of the model. source_set: its name of the coders, if it knows
    them. Raises InputError for a feature whose number no page can hold.
    """
    graph = shared.graph
    numbering = Numbering.of(graph)
    ranks = _cumulative(graph)
    nodes = {node.id: _node(node, shared, numbering, ranks) for node in graph.nodes}
    ids = {name: made["node_id"] for name, made in nodes.items()}
    return {
        "metadata": _metadata(shared, numbering, slug=slug, scan=scan, source_set=source_set, version=version),
        "qParams": {
            "pinnedIds": [ids[name] for name in shared.pinned if name in ids],
            "supernodes": [[label, *(ids[name] for name in names if name in ids)] for label, names in shared.groups],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [_link(edge, ids) for edge in graph.edges if edge.source in ids and edge.target in ids],
    }


def slug_of(name: str) -> str:
    """A graph's name as its file and Neuronpedia have it."""
    return file_name(name, otherwise="circuit")


def scan_of(model: str) -> str:
    """What Neuronpedia may call a model: the last part of its name, in small letters."""
    return file_name(model.rstrip("/").rpartition("/")[2].lower(), otherwise="model")


def feature_number(place: NodeId, numbering: Numbering) -> int:
    """The number under which a page finds a feature. Raises InputError for one that is too large."""
    number = pair(numbering.rows[place.hook], place.index or 0)
    if number > LARGEST_NUMBER:
        raise InputError(
            f"{place.feature} has no number in Neuronpedia's format, which ends at 2^53",
            hint="write the graph in another format: --as graphml",
        )
    return number


def _node(node: Node, shared: Shared, numbering: Numbering, ranks: Mapping[str, float]) -> dict[str, Any]:
    place = node.place
    made = _output(node, shared.graph, numbering) if place is None else _inner(place, shared, numbering)
    own = {name: value for name, value in vars(node).items() if value is not None}
    return {
        **made,
        "is_target_logit": made["feature_type"] == LOGIT and node is _first_output(shared.graph),
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "influence": None if place is None else ranks.get(node.id),
        "activation": node.activation,
        OWN: own,
    }


def _inner(place: NodeId, shared: Shared, numbering: Numbering) -> dict[str, Any]:
    """A feature, an error, or the embedding of a token."""
    column = numbering.columns[place.position]
    common = {"ctx_idx": column, "token_prob": 0.0}
    if place.is_token:
        token = _id_at(shared.graph, place)
        key = {"node_id": f"E_{token}_{column}", "jsNodeId": f"E_{token}-{column}"}
        clerp = f'Emb: "{numbering.tokens[column]}"'
        return {**key, "feature": column, "layer": "E", "feature_type": TOKEN, "clerp": clerp, **common}
    row = numbering.rows[place.hook]
    if place.is_error:
        name = f"{row}_error_{place.hook.site}_{column}"
        key = {"node_id": name, "jsNodeId": f"{name}-0", "clerp": f"what coders miss at {place.hook}"}
        return {**key, "feature": -1, "layer": str(row), "feature_type": ERROR, **common}
    key = {"node_id": f"{row}_{place.index}_{column}", "jsNodeId": f"{row}_{place.index}-0"}
    label = shared.label(place.feature)
    clerp = label if numbering.is_layer else f"{place.feature} {label}".rstrip()
    number = feature_number(place, numbering)
    return {**key, "feature": number, "layer": str(row), "feature_type": FEATURE, "clerp": clerp, **common}


def _id_at(graph: CircuitGraph, place: NodeId) -> int:
    ids = graph.head.ids or ()
    return ids[place.position] if isinstance(place.position, int) and place.position < len(ids) else 0


def _first_output(graph: CircuitGraph) -> Node | None:
    outputs = [node for node in graph.nodes if node.is_output]
    return max(outputs, key=lambda node: node.probability or 0.0, default=None)


def _output(node: Node, graph: CircuitGraph, numbering: Numbering) -> dict[str, Any]:
    """An output token, or the metric; a page takes its probability as how much it counts."""
    head, row, column, token = graph.head, numbering.last_row, numbering.last_column, node.token_id
    what = (_metric_text(head) if token is None else head.token_of(node.id)) or ""
    share = _metric_share(head) if token is None else node.probability or 0.0
    number = head.target_id or 0 if token is None else token
    return {
        "node_id": f"{row}_{'output' if token is None else token}_{column}",
        "jsNodeId": f"L_{number}-{column}",
        "feature": number,
        "layer": str(row),
        "ctx_idx": column,
        "feature_type": LOGIT,
        "token_prob": share,
        # Pages read the probability behind the first of these brackets.
        "clerp": f'Output "{what.replace("(p=", "(p =")}" (p={share:.3f})',
    }


def _metric_text(head: GraphRecord) -> str:
    """The token whose probability is explained; of other metrics their name."""
    return head.target if head.metric == "log-prob" and head.target is not None else head.metric


def _metric_share(head: GraphRecord) -> float:
    """The probability of the token that is explained; of other metrics all of it."""
    if head.metric != "log-prob" or head.metric_clean is None:
        return 1.0
    return math.exp(min(head.metric_clean, 0.0))


def _link(edge: Edge, ids: Mapping[str, str]) -> dict[str, Any]:
    own = {
        name: value
        for name, value in vars(edge).items()
        if value is not None and name not in ("source", "target", "weight")
    }
    if "heads" in own:
        own["heads"] = dict(own["heads"])
    return {"source": ids[edge.source], "target": ids[edge.target], "weight": edge.weight, OWN: own}


def _cumulative(graph: CircuitGraph) -> dict[str, float]:
    """Of each node the share of all influence that it and more influential ones have: up to some share a page shows
    nodes. The influence is what the graph says, or that by way of its edges."""
    told = {node.id: node.influence for node in graph.nodes if node.influence is not None}
    sizes = told or influences(graph)[0]
    ranked = sorted((name for name in sizes if not graph.by_id[name].is_output), key=lambda name: -sizes[name])
    total = math.fsum(sizes[name] for name in ranked)
    if total <= 0:
        return {}
    shares, before = dict[str, float](), 0.0
    for name in ranked:
        before += sizes[name]
        shares[name] = min(before / total, 1.0)
    return shares


def _metadata(
    shared: Shared, numbering: Numbering, *, slug: str, scan: str, source_set: str | None, version: str
) -> dict[str, Any]:
    head = shared.graph.head
    details = {} if source_set is None else {"feature_details": {"neuronpedia_source_set": source_set}}
    thresholds = {"node_threshold": head.node_threshold, "edge_threshold": head.edge_threshold}
    told = {name: value for name, value in thresholds.items() if value is not None}
    scores = {"replacement_score": head.replacement, "completeness_score": head.completeness}
    settings = {"method": head.method, "metric": head.metric, "baseline": head.baseline, "positions": head.positions}
    own = bare(head)
    more = {name: getattr(head, name) for name in ("steps", "down", "up", "seed", "n_prompts")}
    return {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(numbering.tokens),
        "prompt": head.prompt,
        "schema_version": SCHEMA_VERSION,
        **details,
        "info": {
            "description": f"{head.name}: {head.metric} of {head.explained_target} in {head.model}, by {head.method}",
            "generator": {"name": "circuit", "version": version},
        },
        "generation_settings": {**settings, **{name: value for name, value in more.items() if value is not None}},
        **({"pruning_settings": told} if told else {}),
        **{name: value for name, value in scores.items() if value is not None},
        OWN: {"format": 1, "rows_are_layers": numbering.is_layer, "head": own},
    }
