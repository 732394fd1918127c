"""A drawing as one JSON document with every number that a picture of it shows.

    {"format": 1, "version": "0.1.0",
     "graph":    the head: name, method, metric, prompt, tokens, metric_clean, metric_baseline, unit, saes, ...
     "nodes":    [{"id", "kind": "feature" | "error" | "token" | "logit" | "output", "hook", "feature", "position",
                   "token", "activation", "effect", "standard_error", "active", "unit", "influence", "probability",
                   "drawn", "details": null or
                   {"label", "density", "n_active", "max", "mean", "quantiles", "contexts", "promoted", "suppressed",
                    "negative", "decoder_norms"}}]
     "edges":    [{"source", "target", "weight", "standard_error", "active", "unit", "heads", "strength", "opacity",
                   "width", "drawn"}]
     "traces":   {feature: {"tokens", "activations", "peak", "positions", "prompt"}}   the prompt itself as a context,
                 0 at a BOS token, with the first position of each token, for tokens that are parts of one character are
                 one; of several prompts the one, from 1, in which the feature is furthest from zero, else null
     "scores":   the score records about this graph
     "verdict":  what a test of it came to, {"verdict", "why", ...}, or null
     "scales":   [{"unit", "largest", "samples": [{"weight", "opacity", "width"}]}]   what the legend shows
     "left_out": [{"unit", "n_edges", "n_left_out", "share"}]   edges not drawn, and their share of the total |weight|
     "groups":   [{"members": [id], "cosine"}]   features with similar edges, see `similar_groups`
     "links":    {"features": null or where a page about each feature is, to be followed by # and the feature,
                  "neuronpedia": {hook: a page, to be followed by / and the feature's number}}
    }

Effects have the unit of the metric, weights the unit beside them, contexts activation units, promoted and suppressed
tokens logits. Of several prompts numbers are means, with the standard error of effect or weight, and ``active`` is the
share of the prompts in which it is not zero. ``strength`` is |weight| as a share of the largest of the same unit.
``heads`` are the parts of an edge by attention head, or null.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitcli import __version__, pieces
from circuitcli.graphs import Edge, Node, Trace
from circuitcli.render.drawing import Drawing
from circuitcli.render.links import links
from circuitcli.render.scales import Scale

_HALVES = re.compile("[\ud800-\udfff]")
FORMAT = 1


def document(drawing: Drawing, *, path: Path | None = None) -> dict[str, Any]:
    """The document as a tree of JSON values; ``path`` is where it is written, from which links lead."""
    drawn_nodes, drawn_edges = frozenset(drawing.nodes), frozenset(drawing.edges)
    return {
        "format": FORMAT,
        "version": __version__,
        "graph": drawing.graph.head.model_dump(mode="json", exclude={"kind"}),
        "nodes": [{**_node(node, drawing), "drawn": node in drawn_nodes} for node in drawing.graph.nodes],
        "edges": [{**_edge(edge, drawing.scale(edge)), "drawn": edge in drawn_edges} for edge in drawing.graph.edges],
        "traces": {trace.feature: found for trace in drawing.graph.traces if (found := _trace(trace, drawing))},
        "scores": [score.model_dump(mode="json", exclude={"kind"}, exclude_none=True) for score in drawing.scores],
        "verdict": _verdict(drawing),
        "scales": [_scale(scale) for scale in drawing.scales.values()],
        "left_out": [asdict(left) for left in drawing.left_out],
        "groups": [asdict(group) for group in drawing.groups],
        "links": links(drawing, path),
    }


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON text in which all characters stand for themselves, but halves of surrogate pairs, which no file can hold."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
    return _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _verdict(drawing: Drawing) -> dict[str, Any] | None:
    verdict = drawing.verdict
    return None if verdict is None else verdict.model_dump(mode="json", exclude={"kind"}, exclude_none=True)


def _node(node: Node, drawing: Drawing) -> dict[str, Any]:
    place = node.place
    known = drawing.known(node)
    return {
        "id": node.id,
        "kind": node.kind,
        "hook": None if place is None else str(place.hook),
        "feature": None if place is None else place.feature,
        "position": None if place is None else place.position,
        "token": drawing.token(node),
        "activation": node.activation,
        "effect": node.effect,
        "standard_error": node.standard_error,
        "active": node.active,
        "unit": node.unit,
        "influence": node.influence,
        "probability": node.probability,
        "details": None if known is None else known.model_dump(mode="json", exclude={"id", "sae"}),
    }


def _trace(trace: Trace, drawing: Drawing) -> dict[str, Any] | None:
    tokens = drawing.graph.head.tokens if trace.tokens is None else trace.tokens
    if len(tokens) != len(trace.activations):
        return None
    parts = pieces.joined(tokens)
    values = pieces.furthest(trace.activations, parts)
    return {
        "tokens": [part.text for part in parts],
        "activations": values,
        "peak": max(range(len(values)), key=lambda index: abs(values[index]), default=0),
        "positions": [part.start for part in parts],
        "prompt": trace.prompt,
    }


def _edge(edge: Edge, scale: Scale) -> dict[str, Any]:
    return {
        "source": edge.source,
        "target": edge.target,
        "weight": edge.weight,
        "standard_error": edge.standard_error,
        "active": edge.active,
        "unit": edge.unit,
        "heads": edge.heads,
        "strength": scale.strength(edge.weight),
        "opacity": scale.opacity(edge.weight),
        "width": scale.width(edge.weight),
    }


def _scale(scale: Scale) -> dict[str, Any]:
    samples = [
        {"weight": weight, "opacity": scale.opacity(weight), "width": scale.width(weight)} for weight in scale.samples()
    ]
    return {"unit": scale.unit, "largest": scale.largest, "samples": samples}
