"""``circuit inspect`` without a path: what the run holds, told from its manifest and records; needs no torch."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from circuitcli.hookpoints import LOGIT, OUTPUT, NodeId
from circuitcli.manifest import NEXT
from circuitcli.records import (
    FeatureRecord,
    FeaturesRecord,
    FigureRecord,
    GraphRecord,
    NodeRecord,
    Record,
    ReportRecord,
    SaeRecord,
    StageRecord,
    Stream,
)
from circuitcli.runs import Run, file_digest

# Single lines that their heads and files stand for.
_LINES = ("node", "edge", "feature", "shift")


def listing(run: Run) -> list[Record]:
    """The run's record, one for each stage that worked on it, and one for each thing that it holds.

    Graphs are told by their heads, with the numbers of their nodes and edges; features by hook point. Raises InputError
    if there is no run, or what it emitted cannot be read.
    """
    stream = run.stream()
    held = [record for record in _latest(stream) if record.kind not in ("run", "graph", *_LINES)]
    graphs, features = _graphs(stream), _features(run, stream)
    return [run.record(), *_stages(run), *held, *features, *graphs, *_files(run)]


def _latest(stream: Stream) -> Iterator[Record]:
    """Of several records about the same thing the last."""
    seen = {id(record) for kind in {type(record) for record in stream} for record in stream.of(kind)}
    return (record for record in stream if id(record) in seen)


def _stages(run: Run) -> Iterator[StageRecord]:
    for name, entry in run.stages().items():
        yield _stage(name, entry)
        if NEXT in entry:
            yield _stage(name, entry[NEXT])


def _stage(name: str, entry: Mapping[str, Any]) -> StageRecord:
    told = {key: entry[key] for key in ("state", "command", "started", "seconds") if key in entry}
    return StageRecord(name=name, **{"state": "unknown", **told})


def _graphs(stream: Stream) -> list[Record]:
    """The heads, each with how many nodes and edges follow it."""
    found: list[tuple[GraphRecord, Counter[str]]] = []
    for record in stream:
        if isinstance(record, GraphRecord):
            found.append((record, Counter()))
        elif found and record.kind in ("node", "edge"):
            is_output = isinstance(record, NodeRecord) and (record.id == OUTPUT or record.id.startswith(LOGIT))
            found[-1][1][record.kind] += not is_output
    counted = [(head.model_dump(exclude_none=True), counts) for head, counts in found]
    made = {head["name"]: {**head, "n_nodes": counts["node"], "n_edges": counts["edge"]} for head, counts in counted}
    return [GraphRecord.model_validate(head) for head in made.values()]


def _features(run: Run, stream: Stream) -> list[Record]:
    """What versions before this one emitted for each feature, by hook point."""
    told = {record.hook for record in stream.of(FeaturesRecord)}
    widths = {record.hook: record.d_sae for record in stream.of(SaeRecord)}
    old: dict[str, list[FeatureRecord]] = {}
    for record in stream.of(FeatureRecord):
        if record.path is not None and (hook := str(NodeId.parse(record.id).hook)) not in told:
            old.setdefault(hook, []).append(record)
    made: list[Record] = []
    for hook, own in old.items():
        path, n_dead = run.path / (own[0].path or ""), max(0, widths.get(hook, len(own)) - len(own))
        digest = file_digest(path) if path.is_file() else ""
        made.append(FeaturesRecord(hook=hook, n_live=len(own), n_dead=n_dead, path=own[0].path, digest=digest))
    return made


def _files(run: Run) -> Iterator[Record]:
    """Reports and figures, which lie in the run whoever asked for them."""
    for path in sorted(run.path.glob("reports/*.json")):
        yield ReportRecord(path=path.relative_to(run.path).as_posix())
    for path in sorted(run.path.glob("figures/*")):
        if path.is_file():
            yield FigureRecord(path=path.relative_to(run.path).as_posix())
