"""What the page with a time slider is drawn from: circuits of all checkpoints, their features followed by matches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.graphs import CircuitGraph, Node
from circuitcli.hookpoints import HookPoint
from circuitcli.records import CircuitRecord, ScoreRecord
from circuitcli.records.through import Frame, FrameEdge, FrameNode, Line, TimelineReport
from circuitcli.render.details import read_details
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request
from circuitcli.stages.through import Moment, asked

if TYPE_CHECKING:
    from circuitcli.development.behaviour import Presence
    from circuitcli.development.overlap import Lifeline, Pairs

_BY = {
    "decoder": "decoder rows",
    "activation": "activations on the same tokens",
    "correlation": "activations around their means, on the same tokens,",
}


@dataclass(frozen=True)
class Found:
    """A checkpoint with its circuit, that through another seed's coders, and whether there is a behaviour.

    note: why the circuit was not tested though there is one. promotes: tokens that its features promote, by name.
    """

    moment: Moment
    graph: CircuitGraph
    seed: CircuitGraph | None
    presence: "Presence"
    scores: Mapping[str, ScoreRecord]
    note: str | None
    promotes: Mapping[str, str]


def report_of(
    request: Request, circuits: Sequence[Found], records: Sequence[CircuitRecord], steps: "Sequence[Pairs]"
) -> TimelineReport:
    from circuitcli.development.overlap import features_of, lifelines

    lines = lifelines([features_of(one.graph) for one in circuits], steps)
    errors = _error_lines(circuits)
    places = {(line.hook, number, index): place for place, line in enumerate(lines) for number, index in _at(line)}
    of_errors = {hook: len(lines) + place for place, hook in enumerate(errors)}
    labels = [_labels(one) for one in circuits]
    frames = tuple(
        Frame(
            circuit=record,
            nodes=tuple(_node(node, number, places, of_errors, labels[number]) for node in one.graph.nodes),
            edges=tuple(FrameEdge(source=e.source, target=e.target, weight=e.weight) for e in one.graph.edges),
        )
        for number, (one, record) in enumerate(zip(circuits, records, strict=True))
    )
    head = circuits[-1].graph.head
    drawn_lines = [Line(hook=str(one.hook), first=one.first, last=one.last, indices=one.indices) for one in lines]
    drawn_lines += [Line(hook=str(hook), first=0, last=len(circuits) - 1) for hook in errors]
    return TimelineReport(
        title=_title(request.settings, circuits),
        facts=_facts(request, circuits),
        metric=head.metric,
        unit=head.unit,
        frames=frames,
        lines=tuple(drawn_lines),
    )


def _at(line: "Lifeline") -> list[tuple[int, int]]:
    return [(line.first + place, index) for place, index in enumerate(line.indices)]


def _error_lines(circuits: Sequence[Found]) -> list[HookPoint]:
    """The hook points of which some circuit has the error term."""
    places = (node.place for one in circuits for node in one.graph.nodes)
    return sorted({place.hook for place in places if place is not None and place.is_error})


def _node(
    node: Node,
    number: int,
    places: Mapping[tuple[HookPoint, int, int], int],
    of_errors: Mapping[HookPoint, int],
    labels: Mapping[str, str],
) -> FrameNode:
    place = node.place
    line = None
    if place is not None:
        line = of_errors[place.hook] if place.index is None else places[place.hook, number, place.index]
    label = labels.get(node.id.partition("@")[0], "")
    return FrameNode(id=node.id, line=line, effect=node.effect, activation=node.activation, label=label)


def _labels(one: Found) -> dict[str, str]:
    """What is known of the circuit's features: a label, else the tokens that they promote."""
    found = read_details(one.graph, one.moment.request.records, one.moment.path)
    return {**one.promotes, **{name: each.label for name, each in found.items() if each.label}}


def _title(settings: Settings, circuits: Sequence[Found]) -> str:
    graph = settings.graph
    if graph.prompts is not None:
        return f"{Path(graph.prompts).stem.replace('_', ' ')} through training"
    target = "" if graph.target is None else f" → {graph.target!r}"
    return f"{(graph.prompt or 'the prompt')!r}{target} through training"


def _facts(request: Request, circuits: Sequence[Found]) -> tuple[str, ...]:
    head, settings = circuits[-1].graph.head, request.settings
    first = asked(settings)[0]
    example = f"{first.prompt[-60:]!r}" + (f" → {first.target!r}" if first.target is not None else "")
    model = Path(str(request.run.manifest().get("model", ""))).name
    return (
        f"{model}: {len(circuits)} checkpoints, {head.n_prompts} prompts, for example {example}. "
        f"Metric: {head.metric} in {head.unit}; circuits by {head.method}, baseline {head.baseline}.",
        f"Features of two checkpoints are the same where the cosine of their {_BY[settings.develop.by]} is at least "
        f"{settings.develop.least:g}; chance is the metric of tokens drawn by their frequency in the run's text.",
    )


_BY = {
    "decoder": "decoder rows",
    "activation": "activations on the same tokens",
    "correlation": "activations, centred,",
}
