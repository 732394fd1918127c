"""What the graph and validation stages start from: SAEs, the cache, graph files."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli import graphs, records
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, SaeRecord
from circuitcli.runs import file_digest
from circuitcli.saes.folder import CONFIG, WEIGHTS, read_config
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.base import SparseAutoencoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaeSource:
    """Where an SAE is, and the digest of its weights."""

    directory: Path
    digest: str


def sae_sources(request: Request, *, stage: str) -> dict[HookPoint, SaeSource]:
    """The SAEs that the stage works with, by hook point: those of ``--sae``, else those of the records; torch-free.

    Raises InputError if there is none, or if weights are not those that the records tell of.
    """
    named = request.settings.sae_path
    if named is not None:
        return _below(Path(named).expanduser())
    found = {}
    for record in request.records.of(SaeRecord):
        directory = request.run.path / record.path
        found[HookPoint.parse(record.hook)] = SaeSource(directory, record.digest)
    if not found:
        raise InputError(
            f"{stage} read no 'sae' record", hint="run `circuit train` before it, or name SAEs with --sae PATH"
        )
    return {hook: found[hook] for hook in sorted(found)}


def _below(path: Path) -> dict[HookPoint, SaeSource]:
    """All SAEs of a run directory, of a directory of SAEs, or of one SAE's directory."""
    places = [path, *sorted((path / "saes").glob("*")), *sorted(path.glob("*"))]
    found = {}
    for place in places:
        if (place / WEIGHTS).is_file() and (place / CONFIG).is_file():
            found[HookPoint.parse(read_config(place)["hook"])] = SaeSource(place, file_digest(place / WEIGHTS))
    if not found:
        raise InputError(
            f"no SAE in {path}", hint="--sae takes a run directory, a directory of SAEs, or one SAE's directory"
        )
    return {hook: found[hook] for hook in sorted(found)}


def load_saes(
    sources: Mapping[HookPoint, SaeSource], hooks: Iterable[HookPoint], *, model: str, takes_transcoders: bool = False
) -> "dict[HookPoint, SparseAutoencoder]":
    """The SAEs of these hook points, with a warning for those that were trained on another model than ``model``.

    Raises InputError if the weights changed since they were recorded, or for a transcoder where none can be used.
    """
    from circuitcli.saes import files

    loaded = {}
    for hook in hooks:
        source = sources[hook]
        if not (source.directory / WEIGHTS).is_file():
            raise InputError(f"no SAE in {source.directory}", hint="run `circuit train` again")
        if file_digest(source.directory / WEIGHTS) != source.digest:
            raise InputError(
                f"the weights in {source.directory} are not those that were recorded", hint="run `circuit train` again"
            )
        trained_on = read_config(source.directory).get("model", model)
        if trained_on != model:
            logger.warning("the SAE at %s was trained on %s, not on %s", hook, trained_on, model)
        loaded[hook] = files.load(source.directory)
        if loaded[hook].is_transcoder and not takes_transcoders:
            raise InputError(
                f"{source.directory} holds a transcoder from {hook} to {loaded[hook].target}, not an autoencoder",
                hint="circuits are made of autoencoders: choose hook points with --sites",
            )
    return loaded


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


def activation_digests(request: Request) -> dict[str, str]:
    """Digests of the cached activations, by name."""
    return {f"activations at {record.hook}": record.digest for record in request.records.of(ActivationsRecord)}


def read_graphs(path: Path) -> list[CircuitGraph]:
    """The graphs of a file of records. Raises InputError if it holds none."""
    try:
        with path.open(encoding="utf-8") as lines:
            found = graphs.from_records(records.read(lines, name=str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="name a file below RUN/graphs") from None
    if not found:
        raise InputError(f"{path} holds no graph", hint="name a file below RUN/graphs")
    return found


def chosen_graph(request: Request, named: str | None, *, stage: str) -> CircuitGraph:
    """The graph of that name or file, else the last of the stream. Raises InputError if there is none."""
    if named is not None and Path(named).is_file():
        return read_graphs(Path(named))[-1]
    found = graphs.from_records(request.records)
    if named is not None:
        found = [graph for graph in found if graph.head.name == named]
        if not found:
            raise InputError(f"no graph named '{named}'", hint="`circuit graph-grad --name` gives a graph its name")
    if not found:
        raise InputError(
            f"{stage} read no 'graph' record", hint="run `circuit graph-grad` or `circuit graph-naive` before it"
        )
    return found[-1]
