"""Which graphs can be made one, and what tells graphs apart."""

import hashlib
import json

from circuitcli.errors import InputError
from circuitcli.graphs.graph import CircuitGraph
from circuitcli.graphs.pruning import sorted_graph
from circuitcli.records import GraphRecord

# What decides a test beside what every head has; heads of earlier versions lack these.
_DECIDING = ("ids", "counterfactual", "counterfactual_ids", "baseline_ids", "prompts_digest", "writes")


def content_digest(graph: CircuitGraph) -> str:
    """``sha256:...`` of what a test of the graph depends on: its nodes, prompt, target, metric, baseline and SAEs."""
    head = graph.head
    content = [sorted(graph.by_id), head.prompt, head.target, head.foil, head.metric, head.baseline, head.saes]
    told = {name: value for name in _DECIDING if (value := getattr(head, name)) is not None}
    text = json.dumps([*content, told] if told else content, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# What the numbers of a graph mean: graphs in which these differ are not joined.
_MEANING = (
    "model",
    "revision",
    "dtype",
    "prompt",
    "ids",
    "method",
    "steps",
    "refined",
    "edge_points",
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
    traces = {trace.feature: trace for trace in (*old.traces, *new.traces)}
    return sorted_graph(CircuitGraph(new.head, tuple(nodes.values()), tuple(edges.values()), tuple(traces.values())))


def _mismatch(name: str, before: object, after: object) -> InputError:
    return InputError(
        f"the graph to extend has another {name}: {before!r}, not {after!r}",
        hint="make both with the same --method, --metric, --baseline, --positions, --layers, --sites and SAEs, "
        "or leave --extend out",
    )
