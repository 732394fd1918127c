"""EAP-IG's and MIB's graphs between attention heads and MLPs: their JSON read and written, their .pt read.

Their ``input`` is ``embed/token`` here, ``a3.h5`` is ``attn.3/5``, ``m3`` is ``mlp.3/0`` and ``logits`` is ``output``.
Edges into the query, key and value of a head are one edge, whose parts are told as those of ``q``, ``k`` and ``v``.
Where a file says which edges are in the circuit only these are read, else all.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.shared import Shared, checked, file_name
from circuitcli.graphs.graph import CircuitGraph, Edge, Node
from circuitcli.hookpoints import OUTPUT
from circuitcli.records import EdgeRecord, GraphRecord, NodeRecord
from circuitcli.records.graph import EDGE_ATTRIBUTION
from circuitcli.schema import UNKNOWN

ORIGIN = "EAP-IG"
# Of the head: what the file says of the model.
CONFIGURATION = "eap_cfg"
_HEAD, _MLP = re.compile(r"a([0-9]{1,4})\.h([0-9]{1,4})"), re.compile(r"m([0-9]{1,4})")
_EDGE = re.compile(r"(?P<source>[^<>]+)->(?P<target>[^<>]+?)(?:<(?P<part>[qkv])>)?")
_OURS = re.compile(
    r"attn\.(?P<layer>[0-9]+)/(?P<head>[0-9]+)|mlp\.(?P<mlp>[0-9]+)/0|(?P<input>embed/token)|(?P<output>output)"
)
_HINT = "write the graph again with Graph.to_json of EAP-IG"


@dataclass(frozen=True)
class Scored:
    """An edge of such a file; ``part`` is q, k or v of what leads into a head."""

    source: str
    target: str
    part: str | None
    score: float
    is_in: bool


def read(content: Mapping[str, Any], *, name: str) -> Shared:
    """The graph of a JSON file. Raises InputError for what no such file holds."""
    nodes, edges = content.get("nodes"), content.get("edges")
    if not isinstance(nodes, dict) or not isinstance(edges, dict):
        raise InputError(f"{name}: nodes and edges of EAP-IG are objects", hint=_HINT)
    scores = {key: _score(one.get("score")) for key, one in nodes.items() if isinstance(one, dict)}
    return graph_of(content.get("cfg"), scores, _edges(edges, name), name=name)


def _score(value: object) -> float | None:
    """A score; None for one that is not there, or that was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _edges(edges: Mapping[str, Any], name: str) -> Iterator[Scored]:
    for key, one in edges.items():
        found = _EDGE.fullmatch(key)
        if found is None or not isinstance(one, dict):
            raise InputError(f"{name}: {key[:60]!r} is not an edge", hint=_HINT)
        score = _score(one.get("score"))
        if score is None:
            raise InputError(f"{name}: edge {key[:60]!r} has no score that is a number", hint=_HINT)
        yield Scored(found["source"], found["target"], found["part"], score, is_in=one.get("in_graph") is True)


def graph_of(cfg: object, scores: Mapping[str, float | None], edges: Iterable[Scored], *, name: str) -> Shared:
    """The graph of these edges between nodes with these scores. Raises InputError for nodes that the model lacks."""
    found = [*edges]
    chosen = [edge for edge in found if edge.is_in] or found
    layers, heads = _sizes(cfg, name)
    ids = {key: _id(key, layers, heads, name) for edge in chosen for key in (edge.source, edge.target)}
    parts: dict[tuple[str, str], dict[str | None, float]] = {}
    for edge in chosen:
        parts.setdefault((ids[edge.source], ids[edge.target]), {})[edge.part] = edge.score
    made = [_edge(source, target, values, name) for (source, target), values in parts.items()]
    nodes = {identity: _node(identity, scores.get(key), name) for key, identity in ids.items()}
    nodes.setdefault(OUTPUT, Node(OUTPUT))
    labels = {identity: {"label": key} for key, identity in ids.items() if identity != OUTPUT}
    head = _head_of(cfg, name=name, n_all=len(found))
    return Shared(CircuitGraph(head, tuple(nodes.values()), tuple(made)), labels)


def _sizes(cfg: object, name: str) -> tuple[int, int]:
    told = cfg if isinstance(cfg, Mapping) else {}
    layers, heads = told.get("n_layers"), told.get("n_heads")
    for value in (layers, heads):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10_000:
            raise InputError(f"{name}: cfg tells no n_layers and n_heads", hint=_HINT)
    return int(layers or 0), int(heads or 0)


def _id(key: str, layers: int, heads: int, name: str) -> str:
    if key in ("input", "logits"):
        return "embed/token" if key == "input" else OUTPUT
    head, mlp = _HEAD.fullmatch(key), _MLP.fullmatch(key)
    if head is not None and int(head[1]) < layers and int(head[2]) < heads:
        return f"attn.{int(head[1])}/{int(head[2])}"
    if mlp is not None and int(mlp[1]) < layers:
        return f"mlp.{int(mlp[1])}/0"
    raise InputError(f"{name}: a model of {layers} layers with {heads} heads has no node {key[:60]!r}", hint=_HINT)


def _node(identity: str, score: float | None, name: str) -> Node:
    content = {"id": identity, "effect": score, "unit": None if score is None else "score"}
    record = checked(NodeRecord, content, place=name)
    return Node(record.id, effect=record.effect, unit=record.unit)


def _edge(source: str, target: str, values: Mapping[str | None, float], name: str) -> Edge:
    heads = {part: score for part, score in values.items() if part is not None}
    content = {"source": source, "target": target, "weight": math.fsum(values.values()), "unit": "score"}
    record = checked(EdgeRecord, {**content, "heads": heads or None}, place=f"{name}: {source} -> {target}")
    return Edge(record.source, record.target, record.weight, record.unit, heads=record.heads)


def _head_of(cfg: object, *, name: str, n_all: int) -> GraphRecord:
    sizes = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
    told = {key: cfg[key] for key in sizes if isinstance(cfg, Mapping) and isinstance(cfg.get(key), bool | int)}
    content = {
        "name": file_name(name.rpartition("/")[2].rpartition(".")[0], otherwise="graph"),
        "origin": ORIGIN,
        "method": EDGE_ATTRIBUTION,
        "metric": UNKNOWN,
        "prompt": "",
        "tokens": (),
        "dtype": UNKNOWN,
        "unit": "score",
        "baseline": UNKNOWN,
        "positions": "sum",
        "model": UNKNOWN,
        CONFIGURATION: told,
        "n_candidates": n_all,
    }
    return checked(GraphRecord, content, place=name)


def content(graph: CircuitGraph) -> dict[str, Any]:
    """The file of a graph that such a file was read as, with what is in it as the circuit.

    Raises InputError for other graphs: their nodes are features, which the format has no place for.
    """
    cfg = (graph.head.model_extra or {}).get(CONFIGURATION)
    if graph.head.method != EDGE_ATTRIBUTION or not isinstance(cfg, dict):
        raise InputError(
            f"graph '{graph.head.name}' is between features; the files of EAP-IG and MIB hold attention heads and MLPs",
            hint="write it with --as neuronpedia, graphml, gexf or csv",
        )
    names = {node.id: _their_name(node.id) for node in graph.nodes}
    edges = {name: {"score": score, "in_graph": True} for edge in graph.edges for name, score in _parts(edge, names)}
    nodes = {
        names[node.id]: {"in_graph": True, **({} if node.effect is None else {"score": node.effect})}
        for node in graph.nodes
    }
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def _parts(edge: Edge, names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    name = f"{names[edge.source]}->{names[edge.target]}"
    if not edge.heads:
        yield name, edge.weight
    for part, score in (edge.heads or {}).items():
        yield f"{name}<{part}>", score


def _their_name(identity: str) -> str:
    found = _OURS.fullmatch(identity)
    if found is None:
        raise InputError(
            f"{identity} is not an attention head, MLP, input or output, which EAP-IG's and MIB's files hold",
            hint="write the graph with --as neuronpedia, graphml, gexf or csv",
        )
    if found["head"] is not None:
        return f"a{found['layer']}.h{found['head']}"
    return f"m{found['mlp']}" if found["mlp"] is not None else "input" if found["input"] else "logits"
