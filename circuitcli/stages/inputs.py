"""What the graph and validation stages start from: the cache, graph files."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli import graphs, records
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.exchange import formats
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord
from circuitcli.stages.request import Request, needed

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache


def open_cache(request: Request, hooks: Iterable[HookPoint], *, purpose: str) -> "ActivationCache":
    """The run's cache at these hook points. Raises InputError if they were not collected."""
    from circuitcli.activations.cache import ActivationCache

    chosen = list(hooks)
    collected = {record.hook for record in request.records.of(ActivationsRecord)}
    missing = [str(hook) for hook in chosen if str(hook) not in collected]
    if missing:
        raise InputError(
            f"{purpose} needs cached activations of {' '.join(missing)}",
            hint="run `circuit collect` for them, or use --baseline zero",
        )
    return ActivationCache(request.run.path / "activations", chosen)


def activation_records(request: Request, *, stage: str) -> list[ActivationsRecord]:
    """What was collected. Raises InputError if that is nothing, or was found to be damaged."""
    if not request.records.of(ActivationsRecord) and request.run.stage("collect").get("state") == "damaged":
        raise InputError(
            f"the activations of {request.run.path} are damaged, as `circuit collect --verify` found",
            hint="run the same `circuit collect` again: it makes the damaged files again, and only these",
        )
    return needed(request, ActivationsRecord, stage=stage, hint="run `circuit collect` before it")


def activation_digests(request: Request) -> dict[str, str]:
    """Digests of the cached activations, by name."""
    return {f"activations at {record.hook}": record.digest for record in request.records.of(ActivationsRecord)}


def read_graphs(path: Path) -> list[CircuitGraph]:
    """The graphs of a file of records. Raises InputError if it holds none."""
    hint = "name a file below RUN/graphs"
    if (shared := formats.read(path)) is not None:
        return [shared.graph]
    found = graphs.from_records(records.read_file(path, hint=hint))
    if not found:
        raise InputError(f"{path} holds no graph", hint=hint)
    return found


def chosen_graph(request: Request, named: str | None, *, stage: str) -> CircuitGraph:
    """The graph of that name or file, else the last of the stream. Raises InputError if there is none."""
    if named is not None and Path(named).is_file():
        return read_graphs(Path(named))[-1]
    found = graphs.from_records(request.records)
    if named is not None:
        found = [graph for graph in found if graph.head.name == named]
        if not found:
            raise InputError(f"no graph named '{named}'", hint="`circuit inspect` lists those of the run")
    if not found:
        raise InputError(
            f"{stage} read no 'graph' record", hint="run `circuit graph-grad` or `circuit graph-naive` before it"
        )
    return found[-1]


def collecting(request: Request, hooks: Iterable[HookPoint]) -> str:
    """The command by which the run gets activations at these hook points in place of its own."""
    model, names = request.settings.model.name, ",".join(sorted(map(str, hooks)))
    words = ["circuit", "collect", "--run", str(request.run.path), "--model", model, "--set", f"data.hooks={names}"]
    return f"`{shlex.join([*words, '--force'])}`"
