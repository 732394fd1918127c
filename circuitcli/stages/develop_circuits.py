"""``circuit develop --prompts FILE``: the circuit of one behaviour at every checkpoint, tested, and compared through
matched features."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, from_records
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import CircuitRecord, Record, ScoreRecord, Stream
from circuitcli.render.text import quoted
from circuitcli.render.through import circuits_plot
from circuitcli.runs import atomic
from circuitcli.settings.model import PLACEMENT
from circuitcli.settings.settings import Settings
from circuitcli.stages import graph_grad, validate
from circuitcli.stages.checkpoint_run import of_stage
from circuitcli.stages.figures import drawn
from circuitcli.stages.pairing import Pairing
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.through import Moment, asked, asked_digest, at, digests, encoded, moments
from circuitcli.stages.timeline import write_report
from circuitcli.stages.timeline_report import Found, report_of

if TYPE_CHECKING:
    from circuitcli.development.behaviour import Presence
    from circuitcli.development.overlap import Overlap, Pairs

logger = logging.getLogger(__name__)

NAME, GRAPH = "circuits", "behaviour"
TABLE = "reports/circuits.csv"
_READ = ("graph.", "validate.", "seed", "develop.by", "develop.assignment", "develop.least", "develop.tokens")
_NO_MATTER = (*PLACEMENT, "graph.prompts", "graph.prompt", "graph.batch_size", "validate.graph", "validate.name")
# What a test of a circuit does at each checkpoint unless it is asked for: the score and some random circuits.
_TESTED = {"curve": "none", "minimality": False, "shuffled": False, "samples": 20}
_WIDE_COLUMNS = ("before", "last", "seed")


def run(request: Request) -> list[Record]:
    """A record for each checkpoint and the pictures, made now or before; what was begun goes on at its checkpoint.

    Raises SettingsError for a behaviour that cannot be followed, InputError for a run of fewer than two checkpoints.
    """
    settings = _settings(request.settings)
    found = moments(request, settings)
    inputs = digests(found) | {"prompts": asked_digest(settings)}
    request = replace(request, settings=settings)
    print_ = fingerprint(request, _READ, inputs, without=_NO_MATTER)
    return resumable(request, NAME, print_, lambda _: _work(request, found))


def _settings(settings: Settings) -> Settings:
    """With one node for a feature at all positions, and a test of each circuit that takes little time."""
    graph = settings.graph
    if graph.positions not in (None, "sum"):
        raise SettingsError(
            f"graph.positions={graph.positions}: circuits through training have one node for each feature",
            hint="leave it out, or use --positions sum",
        )
    if graph.frozen:
        raise SettingsError("circuits through training are gradient graphs", hint="leave out --frozen")
    name = graph.name or GRAPH
    given = settings.validation.model_fields_set
    usual = {field: value for field, value in _TESTED.items() if field not in given}
    tested = settings.validation.model_copy(update={**usual, "graph": name, "name": None})
    graph = graph.model_copy(update={"positions": "sum", "name": name})
    return settings.model_copy(update={"graph": graph, "validation": tested})


def _work(request: Request, found: Sequence[Moment]) -> tuple[list[Record], dict[str, Any]]:
    circuits = []
    for number in range(len(found)):
        with at(number, found) as moment:
            circuits.append(_circuit(moment))
    pairing = Pairing(request.settings, [one.graph for one in circuits])
    steps = [pairing.between(a, b) for a, b in pairwise(found)]
    records = [_record(number, circuits, steps, pairing) for number in range(len(circuits))]
    _write_table(request.run.path / TABLE, records)
    report = report_of(request, circuits, records, steps)
    write_report(request.run, report)
    plot = circuits_plot(records, title=f"{report.title}, at {len(records)} checkpoints")
    return [*records, *drawn(request.run, NAME, plot)], {"checkpoints": len(records)}


def _circuit(moment: Moment) -> Found:
    """Found, and tested where there is a behaviour, by the stages that do so for any run."""
    graph = _graph(of_stage(graph_grad.run, moment.request))
    seed = None
    if (other := moment.other_seed) is not None:
        seed = _graph(of_stage(graph_grad.run, other.request))
    presence, promotes = _looked_at(moment, graph)
    scores: Mapping[str, ScoreRecord] = {}
    note = None
    if presence.is_there:
        try:
            records = moment.request.records + of_stage(graph_grad.run, moment.request)
            tested = of_stage(validate.run, replace(moment.request, records=records))
            scores = {
                one.name: one for one in Stream(tested).of(ScoreRecord) if one.judged or one.name != "faithfulness"
            }
        except InputError as error:
            note = error.message
            logger.warning("the circuit is not tested: %s", note)
    return Found(moment, graph, seed, presence, scores, note, promotes)


def _scores(tested: Sequence[Record]) -> dict[str, ScoreRecord]:
    """Faithfulness and completeness, as they are judged."""
    found = Stream(tested).of(ScoreRecord)
    judged = next((one for one in found if one.name == "faithfulness" and one.judged), None)
    if judged is None:
        return {}
    same = (one for one in found if (one.errors, one.ablation) == (judged.errors, judged.ablation))
    return {"faithfulness": judged, **{one.name: one for one in same if one.name == "completeness"}}


def _graph(records: Sequence[Record]) -> CircuitGraph:
    return from_records(Stream(records))[-1]


def _looked_at(moment: Moment, graph: CircuitGraph) -> "tuple[Presence, dict[str, str]]":
    """Whether there is a behaviour, and the tokens that each of the circuit's features promotes."""
    from circuitcli.development.behaviour import chances, clean_metrics, presence
    from circuitcli.development.promoted import promoted

    settings, model = moment.request.settings, moment.model()
    prompts, metric = encoded(moment, asked(settings), model), settings.graph.metric
    own = clean_metrics(model.adapter, prompts, metric=metric)
    there = presence(own, chances(prompts, _counts(moment), metric=metric), seed=settings.seed)
    features: dict[HookPoint, list[int]] = {}
    for place in (node.place for node in graph.nodes):
        if place is not None and place.index is not None:
            features.setdefault(place.hook, []).append(place.index)
    names = {}
    for hook, indices in features.items():
        for index, tokens in zip(indices, promoted(model, moment.coder(hook), indices), strict=True):
            names[f"{hook}/{index}"] = " ".join(map(quoted, tokens))
    return there, names


def _counts(moment: Moment) -> dict[int, int]:
    """How often each token is in the text of the run."""
    from circuitcli.activations.cache import ActivationCache

    cache = ActivationCache(moment.path / "activations", [])
    tokens, times = cache.tokens(0, cache.n_tokens).token.unique(return_counts=True)
    return dict(zip(tokens.tolist(), times.tolist(), strict=True))


def _record(number: int, circuits: Sequence[Found], steps: "Sequence[Pairs]", pairing: Pairing) -> CircuitRecord:
    from circuitcli.development.overlap import features_of, overlap

    one, seed = circuits[number], circuits[number].moment.request.settings.seed
    own = features_of(one.graph)

    def shared(other: CircuitGraph, pairs: "Pairs") -> dict[str, float]:
        return _told(overlap(own, features_of(other), pairs, seed=seed))

    last = circuits[-1]
    graph, presence = one.graph, one.presence
    faithful = one.scores.get("faithfulness")
    overlaps: dict[str, dict[str, float]] = {}
    if number:
        overlaps["before"] = shared(circuits[number - 1].graph, _turned(steps[number - 1], back=False))
    if one is not last:
        overlaps["last"] = shared(last.graph, _turned(pairing.between(one.moment, last.moment), back=True))
    if one.seed is not None and one.moment.other_seed is not None:
        overlaps["seed"] = shared(one.seed, _turned(pairing.between(one.moment, one.moment.other_seed), back=True))
    return CircuitRecord(
        checkpoint=one.moment.record.name,
        step=one.moment.record.step,
        graph=graph.head.name,
        path=f"{one.moment.record.path}/{graph.head.path}",
        unit=graph.head.unit,
        metric_clean=presence.metric,
        metric_chance=presence.chance,
        gain_low=presence.low,
        gain_high=presence.high,
        there=presence.is_there,
        n_prompts=graph.head.n_prompts,
        n_nodes=sum(not node.is_output for node in graph.nodes),
        n_edges=len(graph.edges),
        n_features=len(own),
        error_share=_error_share(graph),
        faithfulness=None if faithful is None else faithful.value,
        low=None if faithful is None else faithful.low,
        high=None if faithful is None else faithful.high,
        completeness=one.scores["completeness"].value if "completeness" in one.scores else None,
        note=one.note,
        **overlaps,
    )


def _told(found: "Overlap") -> dict[str, float]:
    return asdict(found)


def _turned(pairs: "Pairs", *, back: bool) -> "Pairs":
    """Pairs by the features of the other circuit: those of the earlier checkpoint as they are, others turned round."""
    if not back:
        return pairs
    return {hook: {later: earlier for earlier, later in own.items()} for hook, own in pairs.items()}


def _error_share(graph: CircuitGraph) -> float:
    sizes = {node.id: abs(node.effect or 0.0) for node in graph.nodes if not node.is_output}
    errors = sum(size for name, size in sizes.items() if NodeId.parse(name).is_error)
    return errors / (sum(sizes.values()) or 1.0)


def _write_table(path: Path, records: Sequence[CircuitRecord]) -> None:
    """A line for each checkpoint."""
    lines = []
    for record in records:
        told = record.model_dump(exclude={"kind", *_WIDE_COLUMNS})
        for name in _WIDE_COLUMNS:
            for what in ("jaccard", "weighted", "shuffled", "shuffled_weighted"):
                told[f"{name}_{what}"] = (getattr(record, name) or {}).get(what)
        lines.append(told)
    with atomic(path) as stream:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
