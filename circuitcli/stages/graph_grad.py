"""The gradient graph (Marks et al. 2024, arXiv:2403.19647)."""

from typing import TYPE_CHECKING, Any

from circuitcli.records import Record
from circuitcli.stages.graphing import Task, finish, head_of, prepare, task_of
from circuitcli.stages.request import Request, resumable

if TYPE_CHECKING:
    from circuitcli.attribution.gradients import Effects
    from circuitcli.hookpoints import HookPoint

# Settings that only the naive graph reads.
_NAIVE = ("threshold_exp", "thin", "pin", "to")


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of the graph, found now or before.

    Raises SettingsError without a prompt, InputError without SAEs or for a graph of that name with other settings.
    """
    task = task_of(request, "graph-grad", name="circuit", positions="all", baseline="mean", foreign=_NAIVE)
    return resumable(request, task.entry, task.fingerprint(), lambda resumes: _work(task))


def _work(task: Task) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.selection import Search

    prepared = prepare(task)
    search = Search(prepared.subject, prepared.baseline, task.settings, task.positions)
    effects = search.effects()
    head = head_of(
        task,
        prepared,
        method=f"grad-{task.settings.method}",
        steps=task.settings.ig_steps if task.settings.method == "ig" else 1,
        down=task.settings.down,
        up=task.settings.up,
        effects=_sums(effects),
    )
    return finish(task, prepared, search.graph(head, effects))


def _sums(effects: "dict[HookPoint, Effects]") -> dict[str, dict[str, float | None]]:
    """For each hook point what features and errors add up to, and what integration missed; in the metric's unit."""
    return {
        str(hook): {
            "features": float(effect.features.sum()),
            "errors": float(effect.error.sum()),
            "gap": effect.gap,
        }
        for hook, effect in effects.items()
    }
