"""Features against tokens, as heat maps: those of a graph on its prompt, and each where it is strongest."""

from collections.abc import Mapping, Sequence

from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, Trace
from circuitcli.hookpoints import NodeId
from circuitcli.render.attributions import place_name
from circuitcli.render.heatmaps import HeatMap, HeatMaps, short
from circuitcli.render.strongest import strength_of
from circuitcli.render.text import shortened

# Rows of the map over the prompt; features whose contexts are drawn, their contexts, and tokens beside the peak.
MOST_FEATURES, MOST_MAPS, MOST_CONTEXTS = 40, 6, 6
BEFORE, AFTER = 8, 4
_LABEL_COLUMNS, _TOKEN_COLUMNS = 44, 9
_SHARE = "share of its largest"


def strongest_features(graph: CircuitGraph, n_features: int) -> list[str]:
    """Names of the strongest features, each by its strongest node."""
    rank, found = strength_of(graph), dict[str, float]()
    for node in graph.nodes:
        if node.place is not None and not node.place.is_error and not node.place.is_token:
            found[node.place.feature] = max(found.get(node.place.feature, 0.0), rank(node))
    return sorted(found, key=lambda name: -found[name])[:n_features]


def prompt_map(graph: CircuitGraph, details: Mapping[str, Details]) -> HeatMaps | None:
    """The strongest features of a graph of one prompt, in the order of the model, against its tokens, as shares of the
    largest activation that is known; of a graph without traces where they are nodes. None where nothing is known."""
    traces = {trace.feature: trace.activations for trace in graph.traces if trace.tokens is None}
    rows = traces or _of_nodes(graph)
    names = [name for name in strongest_features(graph, MOST_FEATURES) if name in rows]
    if not names:
        return None
    names.sort(key=lambda name: NodeId.parse(name).order)
    n_tokens = max(len(rows[name]) for name in names)
    values = [_shares(rows[name], details.get(name), n_tokens) for name in names]
    texts = [[short(value) if value else "" for value in row] for row in values]
    what = "activations on the prompt" if traces else "activations of nodes"
    return HeatMaps(
        [_shaded(f"{len(names)} of {len(rows)} features", values, texts, label=_SHARE)],
        columns=[place_name(position, graph.head) for position in range(n_tokens)],
        rows=[_named(name, details.get(name)) for name in names],
        x="position and token",
        y="feature",
        title=f"{graph.head.name}: {what}",
    )


def _of_nodes(graph: CircuitGraph) -> dict[str, tuple[float, ...]]:
    """Activations by position where the features are nodes; 0 elsewhere."""
    found: dict[str, dict[int, float]] = {}
    for node in graph.nodes:
        place = node.place
        if place is not None and isinstance(place.position, int) and node.activation is not None and not place.is_error:
            found.setdefault(place.feature, {})[place.position] = node.activation
    n_tokens = max([len(graph.head.tokens), *(max(one) + 1 for one in found.values())])
    return {name: tuple(one.get(position, 0.0) for position in range(n_tokens)) for name, one in found.items()}


def _shares(row: Sequence[float], known: Details | None, n_tokens: int) -> list[float | None]:
    """By the largest that is known of the feature, here or on the run's text."""
    largest = max([abs(value) for value in row] + ([] if known is None or known.max is None else [abs(known.max)]))
    padded = [*row, *[0.0] * (n_tokens - len(row))]
    return [value / largest if largest else 0.0 for value in padded]


def _shaded(
    title: str, values: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]], *, label: str
) -> HeatMap:
    """A map with zero in white."""
    known = [value for row in values for value in row if value is not None]
    return HeatMap(title, values, low=min([0.0, *known]), is_signed=True, texts=texts, label=label)


def _named(name: str, known: Details | None) -> str:
    return shortened(f"{name} {known.label}" if known is not None and known.label else name, _LABEL_COLUMNS)


def context_maps(graph: CircuitGraph, details: Mapping[str, Details]) -> HeatMaps | None:
    """The strongest features of a graph of which contexts are known, a map each: tokens around the peak, shaded by the
    activation. Of several prompts a feature's trace on its own prompt comes first. None where no context is known."""
    traces = {trace.feature: trace for trace in graph.traces}
    maps = []
    for name in strongest_features(graph, len(graph.nodes)):
        contexts = [*_first(traces.get(name)), *(details[name].contexts if name in details else ())][:MOST_CONTEXTS]
        if contexts and name in details:
            maps.append(_context_map(_named(name, details[name]), contexts))
    if not maps:
        return None
    return HeatMaps(
        maps[:MOST_MAPS],
        columns=[f"{offset:+d}" if offset else "peak" for offset in range(-BEFORE, AFTER + 1)],
        rows=[str(MOST_CONTEXTS - number) for number in range(MOST_CONTEXTS)],
        x="token, from the peak",
        y="context",
        title=f"{graph.head.name}: where its strongest features are active",
        cell=(0.56, 0.26),
    )


def _first(trace: Trace | None) -> list[Context]:
    if trace is None or trace.tokens is None or len(trace.tokens) != len(trace.activations):
        return []
    peak = max(range(len(trace.activations)), key=lambda at: abs(trace.activations[at]))
    return [Context(tokens=trace.tokens, activations=trace.activations, peak=peak)]


def _context_map(title: str, contexts: Sequence[Context]) -> HeatMap:
    """The first context in the uppermost row; rows without one are empty."""
    padded = [*contexts, *[None] * (MOST_CONTEXTS - len(contexts))]
    rows = [_row(context) for context in reversed(padded)]
    values, texts = [values for values, _ in rows], [texts for _, texts in rows]
    return _shaded(title, values, texts, label="activation")


def _row(context: Context | None) -> tuple[list[float | None], list[str]]:
    """Activations and tokens around the peak."""
    n_tokens = 0 if context is None else len(context.tokens)
    values, texts = list[float | None](), list[str]()
    for offset in range(-BEFORE, AFTER + 1):
        at = offset + (0 if context is None else context.peak)
        is_there = context is not None and 0 <= at < n_tokens
        values.append(context.activations[at] if context is not None and is_there else None)
        texts.append(shortened(context.tokens[at], _TOKEN_COLUMNS) if context is not None and is_there else "")
    return values, texts
