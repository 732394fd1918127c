"""Attribution graphs in Neuronpedia's format, read: those that were written here as they were, others as far as they
tell."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.neuronpedia import OWN, SCHEMA_VERSION, unpair
from circuitcli.graphs.exchange.neuronpedia_schema import FileNode, GraphFile, Link, parsed
from circuitcli.graphs.exchange.shared import AGAIN, Shared, checked, file_name, plural
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.hookpoints import HookPoint, NodeId, logit_name
from circuitcli.reading import whole_number
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord
from circuitcli.schema import LARGEST_COUNT, LARGEST_LAYER, UNKNOWN

logger = logging.getLogger(__name__)

# What a feature reads, and where what no feature explains is missing, by the beginning of its type.
_ATTENTION, _READS, _ERRORS = "lorsa", {True: "attn_in", False: "mlp_in"}, {True: "attn", False: "mlp"}
# The text of a logit: Output " floor" (p=0.111), or output: 'Austin' (p=1.000).
_LOGIT = re.compile(r"""utput:?\s*["'](?P<token>.*)["']\s*\(p=""", re.DOTALL)


def read(content: Mapping[str, Any], *, name: str) -> Shared:
    """The graph of a file, as a tree of JSON values, with its labels, groups and pinned nodes.

    Raises InputError for what the schema refuses, and for nodes that no model has.
    """
    file = parsed(content, name=name)
    told = (file.metadata.model_extra or {}).get(OWN)
    own = told.get("head") if isinstance(told, dict) else None
    own = own if isinstance(own, dict) else None
    nodes = _with_shares(_nodes(file, name=name)) if own is None else _nodes(file, name=name)
    ids = {key: node for key, (node, _) in nodes.items()}
    head = _head(file, nodes, name=name) if own is None else checked(GraphRecord, {**own, "kind": "graph"}, place=name)
    made = {node.id: node for node in ids.values()}
    edges = {(edge.source, edge.target): edge for link in file.links if (edge := _edge(link, ids, name=name))}
    if lost := len(file.links) - len(edges):
        logger.warning("%s: %s left out, with an end that cannot be read", name, plural(lost, "link"))
    graph = CircuitGraph(head, tuple(made.values()), tuple(edges.values()))
    return Shared(graph, _features(nodes), groups=_groups(file, ids), pinned=_known(file.qParams.pinnedIds, ids))


def _nodes(file: GraphFile, *, name: str) -> dict[str, tuple[Node, str]]:
    """Nodes by the file's ids, with their labels. Of two with one id the one that edges lead to counts."""
    found: dict[str, tuple[Node, str]] = {}
    twice = unread = 0
    for one in file.nodes:
        made = _own_node(one, name=name) or _foreign_node(one, file, name=name)
        if made is None:
            unread += 1
            continue
        if one.node_id in found:
            twice += 1
            # circuit-tracer gives errors the ids of features of layer 0; nothing leads to its errors.
            if "error" in one.feature_type:
                continue
        found[one.node_id] = made, _label(one, made)
    if twice:
        logger.warning("%s: %s as another node and cannot be told apart from it", name, _have_one_id(twice))
    if unread:
        logger.warning("%s: %s of a kind that is not known left out", name, plural(unread, "node"))
    if not found:
        raise InputError(f"{name} holds no node", hint=AGAIN)
    return found


def _with_shares(nodes: Mapping[str, tuple[Node, str]]) -> dict[str, tuple[Node, str]]:
    """The nodes with their own shares of the influence; files tell those of all that are as influential, together."""
    ranks = {key: node.influence for key, (node, _) in nodes.items() if node.influence is not None}
    shares, before = dict[str, float](), 0.0
    for key in sorted(ranks, key=lambda key: ranks[key]):
        shares[key], before = max(ranks[key] - before, 0.0), ranks[key]
    return {key: (replace(node, influence=shares.get(key)), label) for key, (node, label) in nodes.items()}


def _have_one_id(n: int) -> str:
    return f"{plural(n, 'node')} {'has' if n == 1 else 'have'} the same id"


def _own_node(one: FileNode, *, name: str) -> Node | None:
    if one.own is None:
        return None
    record = checked(NodeRecord, one.own, place=f"{name}: node {one.node_id[:60]}")
    return Node(**{field: getattr(record, field) for field in Node.__dataclass_fields__})


def _foreign_node(one: FileNode, file: GraphFile, *, name: str) -> Node | None:
    """The node as we name it; None for a kind that no name is for."""
    kind, position = one.feature_type, one.ctx_idx
    layer = _whole(one.layer)
    if not 0 <= position <= LARGEST_COUNT:
        raise InputError(f"{name}: node {one.node_id[:60]}: position {position} is none", hint=AGAIN)
    activation, rank = _number(one.activation), _number(one.influence)
    if kind == "logit":
        probability = one.token_prob if one.token_prob is not None and 0 <= one.token_prob <= 1 else None
        return Node(logit_name(_token_id(one)), probability=_number(probability))
    if kind == "embedding":
        return Node(str(NodeId(HookPoint(0, "embed"), None, position, is_token=True)), activation, influence=rank)
    if layer is None or layer > LARGEST_LAYER or kind == "bias":
        return None
    is_attention = kind.startswith(_ATTENTION)
    if "error" in kind:
        return Node(str(NodeId(HookPoint(layer, _ERRORS[is_attention]), None, position)), activation, influence=rank)
    index = _index(one, layer, file)
    if index is None:
        return None
    return Node(str(NodeId(HookPoint(layer, _READS[is_attention]), index, position)), activation, influence=rank)


def _whole(text: str | int) -> int | None:
    return whole_number(text) if isinstance(text, str) else text if text >= 0 else None


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def _token_id(one: FileNode) -> int:
    """The output token: the middle of an id such as 27_464_9, or the file's number of the feature."""
    number = whole_number(one.node_id.split("_")[1]) if one.node_id.count("_") == 2 else None
    return max(one.feature or 0, 0) if number is None else number


def _index(one: FileNode, layer: int, file: GraphFile) -> int | None:
    """The feature's index: of its pair of numbers where that is of its layer, else the middle of its id."""
    if file.metadata.schema_version == SCHEMA_VERSION and one.feature is not None and one.feature >= 0:
        first, index = unpair(one.feature)
        if first == layer:
            return index if index <= LARGEST_COUNT else None
    parts = one.node_id.split("_")
    number = whole_number(parts[1]) if len(parts) == 3 else None
    if number is not None:
        return number
    return one.feature if one.feature is not None and 0 <= one.feature <= LARGEST_COUNT else None


def _label(one: FileNode, made: Node) -> str:
    """What the file calls a node; of a graph that was written here without the name before it."""
    if made.place is None or made.place.is_error or made.place.is_token:
        return ""
    return one.clerp.removeprefix(made.place.feature).lstrip(" ") if one.own is not None else one.clerp


def _edge(link: Link, ids: Mapping[str, Node], *, name: str) -> Edge | None:
    source, target = ids.get(link.source), ids.get(link.target)
    if source is None or target is None:
        return None
    usual = {"unit": "logits" if target.is_output else "pre-activation"}
    content = {**(link.own or usual), "source": source.id, "target": target.id, "weight": link.weight}
    record = checked(EdgeRecord, content, place=f"{name}: link {link.source[:30]} -> {link.target[:30]}")
    return Edge(**{field: getattr(record, field) for field in Edge.__dataclass_fields__})


def _features(nodes: Mapping[str, tuple[Node, str]]) -> dict[str, dict[str, Any]]:
    labelled = ((node.place, label) for node, label in nodes.values() if label)
    return {place.feature: {"label": label} for place, label in labelled if place is not None}


def _known(names: tuple[str, ...], ids: Mapping[str, Node]) -> tuple[str, ...]:
    return tuple(ids[name].id for name in names if name in ids)


def _groups(file: GraphFile, ids: Mapping[str, Node]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Groups of nodes, each a list of its label and ids."""
    found = [
        one for one in file.qParams.supernodes if isinstance(one, list) and all(isinstance(part, str) for part in one)
    ]
    return tuple((one[0], _known(tuple(one[1:]), ids)) for one in found if one)


def _head(file: GraphFile, nodes: Mapping[str, tuple[Node, str]], *, name: str) -> GraphRecord:
    metadata, extra = file.metadata, file.metadata.model_extra or {}
    clerps = {one.node_id: one.clerp for one in file.nodes}
    logits = {node.id: clerps[key] for key, (node, _) in nodes.items() if node.token_id is not None}
    scores = {"replacement": extra.get("replacement_score"), "completeness": extra.get("completeness_score")}
    thresholds = extra.get("pruning_settings")
    thresholds = thresholds if isinstance(thresholds, dict) else {}
    content = {
        "kind": "graph",
        "name": file_name(metadata.slug, otherwise="graph"),
        "origin": _origin(extra),
        "method": "frozen",
        "metric": UNKNOWN,
        "prompt": metadata.prompt,
        "tokens": metadata.prompt_tokens,
        "dtype": UNKNOWN,
        "unit": "logits",
        "baseline": UNKNOWN,
        "positions": "all",
        "model": metadata.scan,
        "logits": {key: _token_text(clerp) for key, clerp in logits.items()},
        **{key: value for key, value in scores.items() if isinstance(value, int | float)},
        **{key: thresholds.get(key) for key in ("node_threshold", "edge_threshold") if _is_share(thresholds.get(key))},
    }
    return checked(GraphRecord, content, place=name, hint=AGAIN)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _origin(extra: Mapping[str, Any]) -> str:
    """The program that made the graph, if the file tells it."""
    info = extra.get("info")
    generator = info.get("generator") if isinstance(info, dict) else None
    name = generator.get("name") if isinstance(generator, dict) else None
    if isinstance(name, str) and name:
        return name[:200]
    return "circuit-tracer" if "transcoder_list" in extra else "Neuronpedia's format"


def _token_text(clerp: str) -> str:
    found = _LOGIT.search(clerp)
    return clerp if found is None else found["token"]
