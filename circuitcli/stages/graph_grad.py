"""The gradient graph (Marks et al. 2024, arXiv:2403.19647)."""

import logging
from typing import TYPE_CHECKING, Any

from circuitcli.records import Record
from circuitcli.stages.graphing import Task, finish, head_of, prepare, task_of, warn_of_emptiness, why_nothing_differs
from circuitcli.stages.request import Request, resumable

if TYPE_CHECKING:
    from circuitcli.attribution.selection import Circuit
    from circuitcli.stages.graphing import Prepared

logger = logging.getLogger(__name__)

# Settings that only the naive graph reads.
_NAIVE = ("threshold_exp", "thin", "pin", "to")


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of the graph, found now or before.

    Raises SettingsError without a prompt, InputError without SAEs or for a graph of that name with other settings.
    """
    settings = request.settings.graph
    if settings.method == "atp" and settings.ig_steps != type(settings)().ig_steps:
        logger.warning("attribution patching takes one step, so --steps changes nothing; --method ig takes several")
    task = task_of(request, "graph-grad", name="circuit", positions="all", baseline="mean", foreign=_NAIVE)
    return resumable(request, task.entry, task.fingerprint(), lambda resumes: _work(task), keeps=True)


def _work(task: Task) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.selection import find_circuit

    settings = task.settings
    prepared = prepare(task)
    head = head_of(
        task,
        prepared,
        method=f"grad-{settings.method}",
        steps=settings.ig_steps if settings.method == "ig" else 1,
        down=settings.down,
        up=settings.up,
    )
    circuit = find_circuit(prepared.panel, settings)
    graph = circuit.graph(head.model_copy(update={"effects": _sums(circuit)}))
    if len(graph.nodes) <= 1:
        warn_of_emptiness(task, _why_empty(prepared, circuit))
    return finish(task, graph, prepared)


def _why_empty(prepared: "Prepared", circuit: "Circuit") -> str:
    """What a graph without nodes lacks."""
    if not any(total.features or total.errors for total in circuit.totals.values()):
        return why_nothing_differs(prepared.panel) or "no node has an effect on the metric"
    return "no node with an effect has a path to the output"


def _sums(circuit: "Circuit") -> dict[str, dict[str, float | None]]:
    """For each hook point what features and errors add up to, and what integration missed; in the metric's unit."""
    sums = {}
    for hook, total in circuit.totals.items():
        told = {"features": total.features, "errors": total.errors}
        # The gap is that of a group, which is named by what its coder reads.
        sums[str(hook)] = {
            **{name: value for name, value in told.items() if value is not None},
            **({"gap": total.gap} if total.features is not None else {}),
        }
    return sums
