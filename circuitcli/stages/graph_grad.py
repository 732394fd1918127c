"""The gradient graph (Marks et al. 2024, arXiv:2403.19647)."""

import logging
from typing import Any

from circuitcli.graphs import CircuitGraph
from circuitcli.records import Record, ScoreRecord
from circuitcli.settings.graph import OF_FROZEN, OF_ONE_GRADIENT
from circuitcli.stages import graph_frozen
from circuitcli.stages.graph_task import Task, task_of
from circuitcli.stages.graphing import finish, head_of, prepare
from circuitcli.stages.request import Request, resumable

logger = logging.getLogger(__name__)

# What each number that exact edges give is called where people read it.
_CHECKS = {
    "correlation_exact": "edges: correlation with path patching",
    "rank_correlation_exact": "edges: rank correlation with path patching",
    "sign_agreement_exact": "edges: sign agreement with path patching",
}
# Settings that only naive and frozen graphs read.
_FOREIGN = ("threshold_exp", "thin", "pin", "to", "sweep_coefficient", "sweep_readers", *OF_FROZEN)


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of the graph, found now or before.

    Raises SettingsError without a prompt, InputError without SAEs or for a graph of that name with other settings.
    """
    settings = request.settings.graph
    if settings.frozen:
        return graph_frozen.run(request)
    graph_frozen.check_unused(settings)
    if settings.method in OF_ONE_GRADIENT and settings.ig_steps != type(settings)().ig_steps:
        name = "attribution patching" if settings.method == "atp" else f"--method {settings.method}"
        logger.warning("%s takes one step, so --steps changes nothing; --method ig takes several", name)
    if settings.method == "exact" and settings.refine:
        logger.warning("--method exact ablates every node already, so --refine changes nothing")
    task = task_of(request, "graph-grad", name="circuit", positions="all", baseline="mean", foreign=_FOREIGN)
    return resumable(request, task.entry, task.fingerprint(), lambda resumes: _work(task), keeps=True)


def _work(task: Task) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.attention.gradient_edges import check_method
    from circuitcli.attribution.attention.records import score_records
    from circuitcli.attribution.method import gradient_facts, gradient_graph
    from circuitcli.models.attention import check_heads

    settings = task.settings
    if settings.heads:
        check_method(settings.method)
    prepared = prepare(task)
    if settings.heads:
        check_heads(prepared.language_model.adapter)
    scores = score_records(prepared.panel, settings.qk, count=settings.pairs, graph=task.name)
    head = head_of(task, prepared, **gradient_facts(settings))
    graph = gradient_graph(prepared.panel, settings, head)
    return finish(task, graph, prepared, more=[*scores, *_checks(graph)])


def _checks(graph: CircuitGraph) -> list[Record]:
    """How far the weights of edges can be believed, if that was asked for."""
    checks = graph.head.checks or {}
    count = sum(edge.exact is not None for edge in graph.edges)
    return [
        ScoreRecord(name=title, value=value, unit="ratio", graph=graph.head.name, samples=count)
        for name, title in _CHECKS.items()
        if (value := checks.get(name)) is not None
    ]
