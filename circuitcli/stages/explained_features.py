"""Which features are to be explained: named ones, those of a graph, the strongest of all graphs, some at random."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, from_records
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.reading import text_lines
from circuitcli.records import FeaturesRecord
from circuitcli.settings.explain import ALL, BEST, GRAPH, RANDOM
from circuitcli.stages.request import Request

DEFAULT_RANDOM = 20
# As in features.lines: quotation marks inside JSON strings are escaped.
_ID = re.compile(r'"id":\s*"([^"\\]+)"')


def chosen(request: Request, hooks: Iterable[HookPoint]) -> dict[HookPoint, list[int]]:
    """Indices of the features that the settings name, by hook point, among those that can be explained.

    Raises InputError for one at another hook point, for a graph that is not there, and where nothing is left.
    """
    known = set(hooks)
    graphs = from_records(request.records)
    texts = request.settings.explain.features or ((GRAPH,) if graphs else (f"{RANDOM}:{DEFAULT_RANDOM}",))
    found: dict[HookPoint, list[int]] = {}
    for text in texts:
        for name in _names(request, graphs, text):
            node = NodeId.parse(name)
            if node.index is None:
                continue
            if node.hook not in known:
                if text == name or node.feature == text:
                    raise _elsewhere(node, known)
                continue
            found.setdefault(node.hook, []).append(node.index)
    if not found:
        raise InputError(
            f"none of the features of {' '.join(texts)} is at a hook point with activations and a coder",
            hint=f"those are {' '.join(map(str, sorted(known)))}",
        )
    return {hook: sorted(set(found[hook])) for hook in sorted(found)}


def _names(request: Request, graphs: list[CircuitGraph], text: str) -> Iterable[str]:
    word, _, rest = text.partition(":")
    if word == GRAPH:
        return _of_graph(graphs, rest or None)
    if word == BEST:
        return _best(graphs)[: int(rest)]
    if word == RANDOM:
        return _random(request, int(rest))
    if text == ALL:
        return [name for names in _described(request).values() for name in names]
    return [NodeId.parse(text).feature]


def _of_graph(graphs: list[CircuitGraph], name: str | None) -> list[str]:
    named = [graph for graph in graphs if name in (None, graph.head.name)]
    if not named:
        known = ", ".join(dict.fromkeys(graph.head.name for graph in graphs))
        hint = f"graphs are {known}" if known else "run `circuit graph-grad` first, or choose --features random:20"
        raise InputError(f"there is no graph '{name}'" if name else "there is no graph yet", hint=hint)
    return list(_effects(named[-1]))


def _best(graphs: list[CircuitGraph]) -> list[str]:
    """Features by their largest effect in any graph."""
    if not graphs:
        raise InputError("there is no graph yet", hint="run `circuit graph-grad` first, or choose --features random:20")
    largest: dict[str, float] = {}
    for graph in graphs:
        for name, effect in _effects(graph).items():
            largest[name] = max(largest.get(name, 0.0), abs(effect))
    return sorted(largest, key=lambda name: (-largest[name], NodeId.parse(name).order))


def _effects(graph: CircuitGraph) -> dict[str, float]:
    """Effects of a graph's features, over their positions."""
    found: dict[str, float] = {}
    for node in graph.nodes:
        place = node.place
        if place is not None and place.index is not None:
            found[place.feature] = found.get(place.feature, 0.0) + (node.effect or 0.0)
    return found


def _random(request: Request, n: int) -> list[str]:
    chosen: list[str] = []
    for hook, names in _described(request).items():
        chosen += Random(f"{request.settings.seed} {hook}").sample(names, min(n, len(names)))
    return chosen


def _described(request: Request) -> Mapping[str, list[str]]:
    """Ids of all features that are described, by hook point."""
    records = request.records.of(FeaturesRecord)
    if not records:
        raise InputError("no features are described yet", hint="run `circuit interp` first, or name --features")
    return {record.hook: _ids(request.run.path / record.path) for record in records}


def _ids(path: Path) -> list[str]:
    matches = (_ID.search(line) for _, line in text_lines(path, hint="run `circuit interp --force`"))
    return [match[1] for match in matches if match is not None]


def _elsewhere(node: NodeId, known: Iterable[HookPoint]) -> InputError:
    return InputError(
        f"{node.feature} cannot be explained: there are no activations or no coder at {node.hook}",
        hint=f"there are at {' '.join(map(str, sorted(known)))}",
    )
