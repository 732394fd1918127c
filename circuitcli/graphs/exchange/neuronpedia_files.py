"""The files of a graph in Neuronpedia's format: the graph, ``graph-metadata.json`` beside it, and its features below.

    circuit.json                        the graph
    graph-metadata.json                 what the graphs of this folder are about
    features/SCAN/NUMBER.json           contexts of each feature about which something is known

So circuit-tracer's page finds them where it is served from this folder.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from circuitcli.errors import CircuitError
from circuitcli.graphs.exchange import neuronpedia, neuronpedia_features, neuronpedia_reading
from circuitcli.graphs.exchange.numbering import Numbering
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.reading import read_object, whole_characters

METADATA, FEATURES = "graph-metadata.json", "features"


def files(
    shared: Shared, path: Path, *, scan: str | None, source_set: str | None, version: str
) -> Iterator[tuple[Path, str]]:
    """Paths and texts of all files; the graph's own comes last, when all that it needs is there.

    scan: Neuronpedia's name of the model; by default the last part of the model's own.
    """
    slug, model = neuronpedia.slug_of(path.stem), scan or neuronpedia.scan_of(shared.graph.head.model)
    made = neuronpedia.content(shared, slug=slug, scan=model, source_set=source_set, version=version)
    for number, content in _features(shared):
        yield path.parent / FEATURES / model / f"{number}.json", _text(content)
    yield path.with_name(METADATA), _text(_listed(made["metadata"], path.with_name(METADATA)))
    yield path, _text(made)


def with_features(shared: Shared, content: Mapping[str, Any], path: Path) -> Shared:
    """The graph with what files beside it tell of its features, where there are some."""
    scan = content["metadata"].get("scan", "")
    folder = path.parent / FEATURES / neuronpedia.scan_of(scan) if isinstance(scan, str) else path.parent
    if not folder.is_dir():
        return shared
    found = dict(shared.features)
    for feature, number in _numbers(shared).items():
        if (file := folder / f"{number}.json").is_file():
            told = neuronpedia_features.read(read_object(file), name=feature)
            found[feature] = {**told, **{key: value for key, value in found.get(feature, {}).items() if value}}
    return Shared(shared.graph, found, shared.groups, shared.pinned)


def read(content: Mapping[str, Any], path: Path) -> Shared:
    """The graph of a file that was parsed, with what is known of its features."""
    shared = neuronpedia_reading.read(content, name=str(path))
    return with_features(shared, content, path)


def _numbers(shared: Shared) -> dict[str, int]:
    """The numbers of a graph's features, by their names without positions."""
    numbering = Numbering.of(shared.graph)
    places = [place for node in shared.graph.nodes if (place := node.place) is not None and place.index is not None]
    return {place.feature: neuronpedia.feature_number(place, numbering) for place in places}


def _features(shared: Shared) -> Iterator[tuple[int, dict[str, Any]]]:
    for feature, number in _numbers(shared).items():
        if details := shared.features.get(feature):
            yield number, neuronpedia_features.content({**details, "id": feature}, number=number)


def _listed(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the folder's graphs are about: this one, and others that were there before."""
    others: list[Any] = []
    if path.is_file():
        try:
            found = read_object(path).get("graphs")
        except CircuitError:
            found = None
        others = found if isinstance(found, list) else []
    kept = [one for one in others if isinstance(one, dict) and one.get("slug") != metadata["slug"]]
    about = {name: value for name, value in metadata.items() if name != neuronpedia.OWN}
    return {"graphs": [*kept, about]}


def _text(content: Mapping[str, Any]) -> str:
    return whole_characters(json.dumps(content, ensure_ascii=False, allow_nan=False)) + "\n"
