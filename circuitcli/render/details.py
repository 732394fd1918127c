"""What is known about single features: contexts, quantiles, logit effects; read for the features of one graph only."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from circuitcli.features.lines import Details, checked, wanted_lines
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import NodeId
from circuitcli.records import FeatureRecord, FeaturesRecord, Stream


def read_details(graph: CircuitGraph, stream: Stream, run: Path | None) -> dict[str, Details]:
    """Details by feature id, for the graph's features about which something is known.

    They come from the files that ``features`` and ``feature`` records name (relative to the run directory) or else from
    ``RUN/features/HOOK.jsonl``; a label on the stream goes before the file's. Details of another SAE than the graph's
    are left out. Raises InputError for a file with a damaged line about one of the features.
    """
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
                label = told[name].label if name in told else ""
                found[name] = details.model_copy(update={"label": label or details.label})
    return {name: found[name] for name in sorted(found, key=lambda name: NodeId.parse(name).order)}


def _fits(graph: CircuitGraph, hook: str | None, record: FeatureRecord) -> bool:
    if hook is None:
        return False
    mine, expected = record.sae, graph.head.saes.get(hook)
    return mine is None or expected is None or mine == expected


def _files(wanted: Mapping[str, str], stream: Stream, told: Iterable[FeatureRecord], run: Path | None) -> list[Path]:
    if run is None:
        return []
    named = {record.hook: run / record.path for record in stream.of(FeaturesRecord)}
    named |= {record.id.partition("/")[0]: run / record.path for record in told}
    paths = {hook: named.get(hook, run / "features" / f"{hook}.jsonl") for hook in wanted.values()}
    return [path for path in dict.fromkeys(paths.values()) if path.is_file()]
