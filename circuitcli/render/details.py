"""What is known about single features: contexts, quantiles, logit effects; read for the features of one graph only."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from circuitcli.features.label_files import LabelBook
from circuitcli.features.lines import Details, checked, wanted_lines
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import NodeId
from circuitcli.records import FeatureRecord, FeaturesRecord, Stream


def read_details(
    graph: CircuitGraph, stream: Stream, run: Path | None, *, labels: Iterable[str | Path] = ()
) -> dict[str, Details]:
    """Details by feature id, for the graph's features about which something is known.

    They come from the files that ``features`` and ``feature`` records name (relative to the run directory) or else from
    ``RUN/features/HOOK.jsonl``; a label on the stream goes before the file's, and `LabelBook` says which others go
    before both: those of the files ``labels`` first. Details of another SAE than the graph's are left out. Raises
    InputError for a file with a damaged line about one of the features.
    """
    # Features of another program's graph are those of other coders than the run's, whatever these are called.
    run = None if graph.head.origin is not None else run
    wanted = {place.feature: str(place.hook) for node in graph.nodes if (place := node.place) and not place.is_error}
    told = {record.id: record for record in stream.of(FeatureRecord) if _fits(graph, wanted.get(record.id), record)}
    found = {
        name: checked(record.model_dump(exclude_none=True), place=f"record of {name}") for name, record in told.items()
    }
    for path in _files(wanted, stream, told.values(), run):
        for _, details in wanted_lines(path, wanted):
            name = details.id
            sae = graph.head.saes.get(wanted[name])
            if sae is None or details.sae is None or details.sae == sae:
                found[name] = details.model_copy(update=_told(told.get(name)))
    book = LabelBook.of(run, labels)
    for name in wanted:
        # What has no description may have a label all the same.
        sae = graph.head.saes.get(wanted[name])
        if name in found or book.of_feature(name, sae=sae):
            found[name] = book.details(found.get(name, Details(id=name, sae=sae)))
    return {name: found[name] for name in sorted(found, key=lambda name: NodeId.parse(name).order)}


def _told(record: FeatureRecord | None) -> dict[str, Any]:
    """What the stream says of a label."""
    if record is None or not record.label:
        return {}
    return {"label": record.label, "label_source": record.label_source, "label_score": record.label_score}


def _fits(graph: CircuitGraph, hook: str | None, record: FeatureRecord) -> bool:
    if hook is None:
        return False
    mine, expected = record.sae, graph.head.saes.get(hook)
    return mine is None or expected is None or mine == expected


def _files(wanted: Mapping[str, str], stream: Stream, told: Iterable[FeatureRecord], run: Path | None) -> list[Path]:
    if run is None:
        return []
    named = {record.hook: run / record.path for record in stream.of(FeaturesRecord)}
    named |= {record.id.partition("/")[0]: run / record.path for record in told if record.path is not None}
    paths = {hook: named.get(hook, run / "features" / f"{hook}.jsonl") for hook in wanted.values()}
    return [path for path in dict.fromkeys(paths.values()) if path.is_file()]
