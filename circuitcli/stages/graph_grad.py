"""The gradient graph (Marks et al. 2024, arXiv:2403.19647)."""

import logging
from typing import TYPE_CHECKING, Any

from circuitcli.records import Record
from circuitcli.stages.graphing import Task, finish, head_of, prepare, task_of, warn_of_emptiness, why_nothing_differs
from circuitcli.stages.request import Request, resumable

if TYPE_CHECKING:
    from circuitcli.attribution.gradients import Effects
    from circuitcli.hookpoints import HookPoint
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
    from circuitcli.attribution.selection import Search
    from circuitcli.attribution.subject import check_finite

    prepared = prepare(task)
    head = head_of(
        task,
        prepared,
        method=f"grad-{task.settings.method}",
        steps=task.settings.ig_steps if task.settings.method == "ig" else 1,
        down=task.settings.down,
        up=task.settings.up,
    )
    search = Search(prepared.subject, prepared.baseline, task.settings, task.positions)
    effects = search.effects()
    for hook, effect in effects.items():
        check_finite((effect.parts.total(), float(effect.error.sum()), effect.gap or 0.0), f"an effect at {hook}")
    graph = search.graph(head.model_copy(update={"effects": _sums(effects)}), effects)
    if len(graph.nodes) <= 1:
        warn_of_emptiness(task, _why_empty(prepared, effects))
    return finish(task, graph)


def _why_empty(prepared: "Prepared", effects: "dict[HookPoint, Effects]") -> str:
    """What a graph without nodes lacks."""
    if all(effect.is_zero for effect in effects.values()):
        return why_nothing_differs(prepared) or "no node has an effect on the metric"
    return "no node with an effect has a path to the output"


def _sums(effects: "dict[HookPoint, Effects]") -> dict[str, dict[str, float | None]]:
    """For each hook point what features and errors add up to, and what integration missed; in the metric's unit."""
    return {
        str(hook): {
            "features": effect.parts.total(),
            "errors": float(effect.error.sum()),
            "gap": effect.gap,
        }
        for hook, effect in effects.items()
    }
