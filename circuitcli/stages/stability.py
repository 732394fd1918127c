"""``circuit validate --stability``: the circuit found again on samples of its prompts, through the coders of other
seeds, and without its strongest nodes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.examples import LeftOut
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, content_digest, to_records
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.progress import task
from circuitcli.records import Record, ScoreRecord, StabilityRecord, VerdictRecord, to_line
from circuitcli.runs import Fingerprint, digest
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.inputs import chosen_graph
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.naming import report_name
from circuitcli.stages.report import write_report
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource
from circuitcli.stages.seeds import matched_names, seed_sources, through
from circuitcli.stages.trials import Bench, Plan
from circuitcli.validation.stability import (
    BAR,
    Agreement,
    Found,
    Stability,
    agreement,
    among,
    check_gradient,
    drawn,
    halves,
    strongest,
)
from circuitcli.validation.verdict import facts_of, judge

if TYPE_CHECKING:
    from circuitcli.validation.refinding import Refinder
    from circuitcli.validation.scores import PanelCases

logger = logging.getLogger(__name__)

_READ = ("validate.stability", "validate.rival", "validate.errors", "validate.bootstrap", "model.", "seed", "sae_path")
# Of a circuit's nodes so many, the strongest, are left out in the search for a rival.
_RIVAL_SHARE = 0.25
Seeds = Mapping[str, Mapping[HookPoint, SaeSource]]


def planned(request: Request, plan: Plan) -> "Wanted | None":
    """The test of the plan's graph that the settings ask for; None if they ask for none.

    Raises InputError for a graph of single ablations, for one of a single prompt, and where another seed has no coder
    at a hook point of the graph.
    """
    settings = request.settings.validation
    if not settings.stability and not settings.sae_seeds:
        return None
    return Wanted.of(request, chosen_graph(request, settings.graph, stage="validate"), plan)


def run(wanted: "Wanted", scored: Sequence[Record]) -> list[Record]:
    """The records of a graph's test with those of how stable it is, measured now or before; a killed test goes on.

    The verdict is about both. Raises InputError for coders of other seeds that do not read and write what the graph's
    do.
    """
    plan = wanted.plan
    made = resumable(
        plan.request,
        plan.entry,
        wanted.fingerprint,
        lambda resumes: _work(wanted, resumes),
        partial=plan.partial,
        keeps=True,
    )
    whole = [record for record in (*scored, *made) if not isinstance(record, VerdictRecord)]
    facts = facts_of(whole)
    about = {**wanted.about(), "ablation": plan.baseline, "errors": plan.request.settings.validation.errors}
    return [*whole, *([] if facts is None else [judge(facts).record(about)])]


@dataclass(frozen=True)
class Wanted:
    """A graph, its plan with the report's own name, and the coders of other seeds by what they were asked as."""

    graph: CircuitGraph
    plan: Plan
    seeds: Seeds

    @classmethod
    def of(cls, request: Request, graph: CircuitGraph, plan: Plan) -> "Wanted":
        """Raises InputError as `planned` does."""
        settings = request.settings.validation
        check_gradient(graph.head)
        if settings.stability and len(plan.examples) < 2:
            raise InputError(
                f"graph '{graph.head.name}' is about one prompt, which has no samples to find it again on",
                hint="make one of several, with `circuit graph-grad --prompts FILE`, or leave out --stability",
            )
        made = cls(graph, plan, {path: seed_sources(request, path, graph.head) for path in settings.sae_seeds})
        name = report_name(
            request,
            asked=None if settings.name is None else f"{settings.name}-stability",
            default=f"{plan.name}-stability",
            fingerprint=made.fingerprint,
        )
        return replace(made, plan=replace(plan, name=name, left_out=LeftOut(allowed=plan.left_out.allowed)))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, all that the test of the graph depends on, and its numbers."""
        inputs = dict(self.plan.fingerprint().inputs)
        inputs["graph"] = digest([to_line(record) for record in to_records(self.graph)])
        for path, sources in self.seeds.items():
            inputs[f"SAEs of {path}"] = digest({str(hook): source.digest for hook, source in sources.items()})
        return fingerprint(self.plan.request, _READ, inputs, without=PLACEMENT)

    def about(self, **more: Any) -> dict[str, Any]:
        """What every record says."""
        return {"graph": self.graph.head.name, "graph_digest": content_digest(self.graph), **more}


def _work(wanted: Wanted, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.render.measured import stability as draw
    from circuitcli.stages.figures import drawn as drawn_figure
    from circuitcli.validation.refinding import Refinder

    bench = Bench.of(wanted.plan)
    cases = bench.cases()
    settings = wanted.plan.request.settings
    refinder = Refinder.of(cases.panel, wanted.graph.head, settings.graph)
    with Ledger(wanted.plan.partial, wanted.fingerprint.digest, resumes=resumes) as ledger:
        search = _Search(refinder, ledger)
        again = search("again", None)
        found: list[Stability] = [_again(wanted, again)]
        if settings.validation.stability:
            found += _over_prompts(search, refinder.n_prompts, settings.validation.stability, settings.seed)
        made: list[Record] = [record for one in found for record in _records(one, wanted, n_prompts=refinder.n_prompts)]
        made += _over_seeds(wanted, bench, cases, search, again)
        made += _scores(made, wanted)
        made += _rival(wanted, cases, search, ledger)
        for record in made:
            ledger.add(record)
    write_report(
        wanted.plan,
        stability=[record.model_dump(exclude_none=True) for record in made],
        circuits=search.found,
        pairs={one.of: [asdict(pair) for pair in one.pairs] for one in found},
    )
    wanted.plan.partial.unlink(missing_ok=True)
    told = [record for record in made if isinstance(record, StabilityRecord)]
    plot = draw(told, title=f"Circuit {wanted.graph.head.name}, found again")
    return [*made, *drawn_figure(wanted.plan.request.run, wanted.plan.name, plot)], {}


class _Search:
    """Finds the circuit on some prompts; what the ledger has is not found again."""

    def __init__(self, refinder: "Refinder", ledger: Ledger) -> None:
        self.refinder, self.ledger = refinder, ledger
        self.found: dict[str, Any] = {}

    def __call__(self, name: str, numbers: Sequence[int] | None, refinder: "Refinder | None" = None) -> Found:
        chosen = refinder or self.refinder
        kept = self.ledger.keep(name, lambda: chosen.on(numbers).content())
        self.found[name] = kept
        return Found.read(kept)


def _again(wanted: Wanted, again: Found) -> Stability:
    """The graph and the circuit that its settings find. Logs a warning where they differ."""
    found = Stability("graph", (agreement(Found.of(wanted.graph), again),))
    if found.pairs[0].nodes < 1 and wanted.plan.request.settings.validation.prompts is None:
        logger.warning(
            "found again on all its prompts, graph '%s' has %.0f %% of its nodes in common with itself: it was "
            "extended, cut, or made with settings that its head does not tell",
            *(wanted.graph.head.name, 100 * found.pairs[0].nodes),
        )
    return found


def _over_prompts(search: _Search, n_prompts: int, samples: int, seed: int) -> list[Stability]:
    """Bootstrap samples, all pairs; and half as many pairs of halves."""
    splits = max(1, samples // 2)
    with task("stability", total=samples + 2 * splits, unit="searches") as advance:

        def one(name: str, numbers: Sequence[int]) -> Found:
            found = search(name, numbers)
            advance()
            return found

        each = [one(f"sample {number}", sample) for number, sample in enumerate(drawn(n_prompts, samples, seed=seed))]
        pairs = [
            agreement(one(f"half {number} a", a), one(f"half {number} b", b))
            for number, (a, b) in enumerate(halves(n_prompts, splits, seed=seed))
        ]
    return [Stability("bootstrap", among(each)), Stability("halves", tuple(pairs))]


def _records(found: Stability, wanted: Wanted, **about: Any) -> Iterator[StabilityRecord]:
    """One of nodes and one of edges; none where there is no pair, as of a single sample."""
    for what, ranks in (("nodes", "node_ranks"), ("edges", "edge_ranks")):
        spread, rank = found.spread(what), found.spread(ranks)
        if spread is not None:
            yield StabilityRecord(
                of=found.of,
                what=what,
                value=spread.mean,
                low=spread.quantile(0.025),
                median=spread.quantile(0.5),
                high=spread.quantile(0.975),
                rank=None if rank is None else rank.mean,
                values=spread.values,
                bar=BAR,
                **wanted.about(**about),
            )


def _scores(made: Sequence[Record], wanted: Wanted) -> list[ScoreRecord]:
    """What the verdict is about: how far the nodes are found again on samples and halves, and by the worst seed."""
    nodes = [record for record in made if isinstance(record, StabilityRecord) and record.what == "nodes"]
    found = []
    for of, name in (("bootstrap", "bootstrap"), ("halves", "halves"), ("seed", "seeds")):
        if there := [record for record in nodes if record.of == of]:
            least = min(there, key=lambda record: record.value)
            score = ScoreRecord(
                name=f"stability-{name}",
                value=least.value,
                low=least.low,
                high=least.high,
                errors=wanted.plan.request.settings.validation.errors,
                unit="ratio",
                ablation=wanted.plan.baseline,
                n_prompts=least.n_prompts,
                samples=len(least.values),
                **wanted.about(),
            )
            found.append(score)
    return found


def _over_seeds(wanted: Wanted, bench: Bench, cases: "PanelCases", search: _Search, again: Found) -> list[Record]:
    """The circuit through the coders of each other seed, its features matched with those of the graph."""
    made: list[Record] = []
    for path, sources in wanted.seeds.items():
        other, refinder = through(wanted.plan, wanted.graph.head, bench, cases, sources=sources)
        found = search(f"seed {path}", None, refinder)
        names, facts = matched_names(bench, other, found)
        one = Stability("seed", (agreement(again, found.renamed(names)),))
        made += _records(one, wanted, n_prompts=refinder.n_prompts, coders=path, **facts)
    return made


def _rival(wanted: Wanted, cases: "PanelCases", search: _Search, ledger: Ledger) -> list[Record]:
    """A circuit without the strongest nodes, tested as the graph's own is. None where nothing is left out."""
    settings = wanted.plan.request.settings
    asked = settings.validation.rival
    own = Found.of(wanted.graph)
    count = round(_RIVAL_SHARE * len(own.nodes)) or 1 if asked is None else min(asked, len(own.nodes))
    if not settings.validation.stability or not count:
        return []
    gone = strongest(own, count)
    kept = ledger.keep(f"without {count}", lambda: Found.of(search.refinder.without(map(NodeId.parse, gone))).content())
    search.found[f"without {count}"] = kept
    rival = Found.read(kept)
    if not rival.nodes:
        logger.warning("without its %d strongest nodes no other circuit is found", count)
        return []
    return [_rival_record(wanted, cases, ledger, rival, agreement(own, rival), count)]


def _rival_record(
    wanted: Wanted, cases: "PanelCases", ledger: Ledger, rival: Found, shared: Agreement, count: int
) -> ScoreRecord:
    from circuitcli.validation import scores
    from circuitcli.validation.comparison import difference
    from circuitcli.validation.scores import PanelCases

    settings, plan = wanted.plan.request.settings, wanted.plan
    policy, draws = settings.validation.errors, {"bootstrap": settings.validation.bootstrap, "seed": settings.seed}
    size = plan.metric.batch_size

    def measured(which: PanelCases, name: str) -> scores.Runs:
        keep = lambda step, make: ledger.take(f"{name}, {step}", make)  # noqa: E731
        return scores.measure(which, policy=policy, batch_size=size, keep=keep)

    other = PanelCases(cases.panel, tuple(map(NodeId.parse, rival.nodes)))
    own, others = measured(cases, "the circuit"), measured(other, "the rival")
    score = scores.ratio(others.circuit, others, **draws)
    apart = difference(own.circuit, others.circuit, own, **draws)
    return ScoreRecord(
        name="faithfulness-rival",
        value=score.value,
        low=score.low,
        high=score.high,
        errors=policy,
        unit="ratio",
        ablation=plan.baseline,
        n_nodes=len(rival.nodes),
        n_prompts=cases.panel.n_prompts,
        overlap=shared.nodes,
        excluded=count,
        difference=apart.value,
        difference_low=apart.low,
        difference_high=apart.high,
        **wanted.about(),
    )
