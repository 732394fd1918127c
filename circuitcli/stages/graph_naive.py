"""The naive graph: every node ablated by itself."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.graphs import Edge, Node
from circuitcli.hookpoints import HookPoint, NodeId, parse_pins
from circuitcli.records import Record
from circuitcli.runs import atomic
from circuitcli.settings.graph import BY_INFLUENCE, OF_FROZEN
from circuitcli.stages import graph_search
from circuitcli.stages.graph_task import Task, task_of
from circuitcli.stages.graphing import finish, head_of, prepare
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.responses import check_sweep, swept
from circuitcli.stages.saes import check_indices, hook_of_pin

if TYPE_CHECKING:
    from circuitcli.attribution.naive import NaivePart, NaiveSearch

# Settings that only the gradient graph reads.
_SELECTION = ("down", "up", "strongest", "min_share", "min_effect", "edge_points", "edges_exact")
_GRADIENT = ("method", "ig_steps", "refine", *_SELECTION, "heads", "qk", "pairs", *OF_FROZEN, *BY_INFLUENCE)


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of the graph, found now or before; a killed run goes on at the next hook point.

    With a search by resampling its graph is found instead.

    Raises SettingsError without a prompt or for a sweep without pins, InputError without SAEs, for pins that are not
    there, or for a graph of that name with other settings.
    """
    if request.settings.search.by is not None:
        return graph_search.run(request)
    task = task_of(request, "graph-naive", name="naive", positions="sum", baseline="zero", foreign=_GRADIENT)
    pins = parse_pins(task.settings.pin)
    check_indices(request, (NodeId(hook, index) for hook, indices in pins.items() for index in indices))
    check_sweep(task.settings)
    return resumable(
        request, task.entry, task.fingerprint(), lambda resumes: _work(task, resumes), partial=_parts(task), keeps=True
    )


def _parts(task: Task) -> Path:
    """Where the ablations of an unfinished graph are kept, a file for each hook point."""
    return task.path.with_suffix(".parts")


def _work(task: Task, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.method import check_pins, naive_graph
    from circuitcli.attribution.naive import NaiveSearch

    folder = _parts(task)
    if not resumes:
        shutil.rmtree(folder, ignore_errors=True)
    prepared = prepare(task)
    pins = {hook_of_pin(hook, task.sources): found for hook, found in parse_pins(task.settings.pin).items()}
    search = NaiveSearch(prepared.panel, task.settings, pins, task.request.settings.seed)
    check_pins(search)
    head = head_of(task, prepared, method="naive", threshold=search.threshold, to=task.settings.to)
    digest = task.fingerprint().digest
    graph = naive_graph(search, head, lambda hook: _part(search, hook, folder, digest))
    made = finish(task, graph, prepared, more=swept(task, search))
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _part(search: "NaiveSearch", hook: HookPoint, folder: Path, digest: str) -> "NaivePart":
    """The ablations of one hook point: from the file of an earlier, killed run, or made now and kept in a file."""
    path = folder / f"{hook}.json"
    if (kept := _kept(path, digest)) is not None:
        return kept
    part = search.part(hook)
    with atomic(path) as stream:
        json.dump(
            {
                "fingerprint": digest,
                "nodes": [asdict(node) for node in part.nodes],
                "edges": [asdict(edge) for edge in part.edges],
                "kept_total": part.kept_total,
                "dropped_total": part.dropped_total,
            },
            stream,
        )
    return part


def _kept(path: Path, digest: str) -> "NaivePart | None":
    """What a file holds; None if it is not there, of another fingerprint, or damaged."""
    from circuitcli.attribution.naive import NaivePart

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["fingerprint"] != digest:
            return None
        return NaivePart(
            tuple(Node(**node) for node in content["nodes"]),
            tuple(Edge(**edge) for edge in content["edges"]),
            float(content["kept_total"]),
            float(content["dropped_total"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
