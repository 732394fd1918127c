"""Rows and columns of a graph where a format has numbers for both: layers of a model, tokens of a prompt."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from circuitcli.graphs.graph import CircuitGraph, Node
from circuitcli.hookpoints import HookPoint, Position, position_order
from circuitcli.records import GraphRecord

EVERYWHERE, AT_THE_END = "(all positions)", "(output)"


@dataclass(frozen=True)
class Numbering:
    """The row of each hook point and the column of each position; ``tokens`` stand in the columns.

    Rows are the layers of the model where each has features at one hook point at most, and errors at one. Else, as
    with coders of the stream, attention and MLPs, every hook point is a row of its own, in the order of the model:
    ``is_layer`` is then false.
    """

    rows: Mapping[HookPoint, int]
    is_layer: bool
    columns: Mapping[Position, int]
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, graph: CircuitGraph) -> "Numbering":
        """The numbering of a graph."""
        rows, is_layer = _rows(graph.nodes)
        columns, tokens = _columns(graph)
        return cls(rows, is_layer, columns, tokens)

    @property
    def last_row(self) -> int:
        """That of the output."""
        return max(self.rows.values(), default=0) + 1

    @property
    def last_column(self) -> int:
        """That of the output."""
        return len(self.tokens) - 1


def _rows(nodes: Iterable[Node]) -> tuple[dict[HookPoint, int], bool]:
    places = [place for node in nodes if (place := node.place) is not None and not place.is_token]
    # What a transcoder reads and what it misses have two names of one layer.
    kinds = {(place.hook, place.is_error) for place in places}
    layers = {(hook.layer, is_error) for hook, is_error in kinds}
    hooks = sorted({hook for hook, _ in kinds})
    # Neuronpedia's page fails on a graph that has nothing above layer 0.
    if len(layers) == len(kinds) and max((hook.layer for hook in hooks), default=1) > 0:
        return {hook: hook.layer for hook in hooks}, True
    return {hook: number for number, hook in enumerate(hooks, 1)}, False


def _columns(graph: CircuitGraph) -> tuple[dict[Position, int], tuple[str, ...]]:
    head = graph.head
    places = [place for node in graph.nodes if (place := node.place) is not None]
    there = {place.position for place in places}
    numbers = [position for position in there if isinstance(position, int)]
    n_tokens = max([len(head.columns if head.columns is not None else head.tokens), *(n + 1 for n in numbers)])
    positions: list[Position] = list(range(n_tokens)) if numbers or not places else []
    names = head.span_names or ()
    spans = there - {None, *numbers}
    positions += sorted(spans | set(names if spans else ()), key=lambda position: position_order(position, names))
    positions += [None] if None in there else []
    tokens = [_token(head, position) for position in positions]
    # circuit-tracer's page leaves out what stands in more than two thirds of the columns.
    tokens += [AT_THE_END] * (len(tokens) < 2)
    return {position: number for number, position in enumerate(positions)}, tuple(tokens)


def _token(head: GraphRecord, position: Position) -> str:
    if position is None:
        return EVERYWHERE
    return str(position) if isinstance(position, str) else " | ".join(head.tokens_at(position))
