"""``circuit validate --against``: two graphs side by side, by what they have and by how much each keeps."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from circuitcli.attribution.examples import LeftOut, digest_of
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, content_digest, to_records
from circuitcli.hookpoints import NodeId, without_numbers
from circuitcli.records import ChangeRecord, ComparisonRecord, Record, to_line
from circuitcli.runs import Fingerprint, digest
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.inputs import chosen_graph
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.naming import report_name
from circuitcli.stages.report import write_report
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import load_saes
from circuitcli.stages.trials import Bench, Plan
from circuitcli.validation.stability import Found, agreement

if TYPE_CHECKING:
    from circuitcli.validation.comparison import Change
    from circuitcli.validation.scores import Runs, Score

logger = logging.getLogger(__name__)

_READ = ("validate.errors", "validate.bootstrap", "model.", "seed", "sae_path")
# What each score is a share of, by what `Runs` calls it.
_PARTS: tuple[tuple[str, Literal["circuit", "complement"]], ...] = (
    ("faithfulness", "circuit"),
    ("completeness", "complement"),
)
PlanOf = Callable[[Request], Plan]


def run(request: Request, plan_of: PlanOf) -> list[Record]:
    """What two graphs have in common, what makes the second of the first, and how much more the first keeps.

    plan_of: the plan of the graph that a request names. Both are tested on the first one's prompts, each through its
    own coders. Raises InputError where these are others at the same hook point.
    """
    wanted = _Wanted.of(request, plan_of)
    plan = wanted.plans[0]
    return resumable(
        request,
        plan.entry,
        wanted.fingerprint,
        lambda resumes: _work(wanted, resumes),
        partial=plan.partial,
        keeps=True,
    )


@dataclass(frozen=True)
class _Wanted:
    """Two graphs and their plans; the first plan has the report's own name."""

    graphs: tuple[CircuitGraph, CircuitGraph]
    plans: tuple[Plan, Plan]

    @classmethod
    def of(cls, request: Request, plan_of: PlanOf) -> "_Wanted":
        settings = request.settings.validation
        graph = chosen_graph(request, settings.graph, stage="validate")
        other = chosen_graph(request, settings.against, stage="validate --against")
        _check_coders(graph, other)
        plan, against = plan_of(request), plan_of(_about(request, settings.against))
        # Both on the prompts of the first, by its metric and baseline.
        moved = replace(
            against,
            examples=plan.examples,
            metric=plan.metric,
            baseline=plan.baseline,
            row=plan.row,
            drawn_with=plan.drawn_with,
            found_with=plan.found_with,
            left_out=LeftOut(allowed=plan.left_out.allowed),
            nodes=_nodes_on(plan, against),
        )
        made = cls((graph, other), (plan, moved))
        default = f"{graph.head.name}-against-{other.head.name}"
        name = report_name(
            request,
            asked=settings.name,
            default=default,
            fingerprint=made.fingerprint,
        )
        return replace(made, plans=(replace(plan, name=name), moved))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, and all of both graphs."""
        inputs = dict(self.plans[0].fingerprint().inputs)
        inputs |= {f"{name} of the other": value for name, value in self.plans[1].fingerprint().inputs.items()}
        for number, graph in enumerate(self.graphs):
            inputs[f"graph {number}"] = digest([to_line(record) for record in to_records(graph)])
        return fingerprint(self.plans[0].request, _READ, inputs, without=PLACEMENT)


def _about(request: Request, name: str | None) -> Request:
    """A request about another graph."""
    section = request.settings.validation.model_copy(update={"graph": name, "against": None})
    return replace(request, settings=request.settings.model_copy(update={"validation": section}))


def _nodes_on(plan: Plan, against: Plan) -> tuple[NodeId, ...]:
    """The other graph's nodes as they are tested on the first one's prompts: at their positions if these are its own
    prompts too."""
    return against.nodes if digest_of(plan.examples) == digest_of(against.examples) else without_numbers(against.nodes)


def _check_coders(graph: CircuitGraph, other: CircuitGraph) -> None:
    """Raise InputError where a feature of one number is another one in the other graph."""
    for name, found in graph.head.saes.items():
        if other.head.saes.get(name, found) != found:
            raise InputError(
                f"graphs '{graph.head.name}' and '{other.head.name}' have different SAEs at {name}, so that their "
                "features are different ones",
                hint="--stability with --sae-seeds compares circuits through SAEs of several seeds",
            )


def _work(wanted: _Wanted, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.validation.comparison import edits

    plan = wanted.plans[0]
    one, other = (Found.of(graph) for graph in wanted.graphs)
    changes = edits(one, other)
    with Ledger(plan.partial, wanted.fingerprint.digest, resumes=resumes) as ledger:
        record = _compared(wanted, one, other, changes, _scores(wanted, ledger))
    made: list[Record] = [record, *(_edit(wanted, change) for change in changes)]
    write_report(
        plan,
        comparison=record.model_dump(exclude_none=True),
        changes=[each.model_dump(exclude_none=True) for each in made[1:]],
    )
    plan.partial.unlink(missing_ok=True)
    return made, {}


def _scores(wanted: _Wanted, ledger: Ledger) -> dict[str, dict[str, float | None]]:
    """Faithfulness and completeness of both, and the difference with its interval over the same prompts."""
    from circuitcli.validation import scores
    from circuitcli.validation.comparison import difference_of_two

    plan = wanted.plans[0]
    settings = plan.request.settings
    bench = Bench.of(plan)
    benches = (bench, _with_coders(wanted.plans[1], bench))
    runs: list[Runs] = []
    for number, each in enumerate(benches):
        cases = each.cases()
        if number == 0:
            each.warn_of_misfits(cases[0])

        def keep(step: str, make: Callable[[], list[float]], number: int = number) -> list[float]:
            return ledger.take(f"graph {number}, {step}", make)

        policy, size = settings.validation.errors, plan.metric.batch_size
        runs.append(scores.measure(cases, policy=policy, batch_size=size, keep=keep))
    found: dict[str, dict[str, float | None]] = {}
    draws = {"bootstrap": settings.validation.bootstrap, "seed": settings.seed}
    for name, part in _PARTS:
        first, second = (scores.ratio(getattr(one, part), one, **draws) for one in runs)
        apart = difference_of_two(runs[0], runs[1], part, **draws)
        found[name] = _told(first, second, apart)
    return found


def _with_coders(plan: Plan, bench: Bench) -> Bench:
    """The bench of another plan with the model of this one, and with its coders if it splices the same."""
    from circuitcli.attribution.subject import fitted
    from circuitcli.saes.coders import Coders

    if (plan.hooks, plan.writes) == (bench.plan.hooks, bench.plan.writes):
        return replace(bench, plan=plan)
    adapter, model = bench.language_model.adapter, plan.request.settings.model.name
    loaded = load_saes(plan.sources, plan.hooks, model=model, adapter=adapter, writes=plan.writes)
    coders = Coders.of(fitted(one.sae, adapter) for one in loaded.values())
    return Bench(plan, bench.language_model, loaded, coders, {})


def _told(first: "Score", second: "Score", apart: "Score") -> dict[str, float | None]:
    return {
        "value": first.value,
        "low": first.low,
        "high": first.high,
        "against": second.value,
        "against_low": second.low,
        "against_high": second.high,
        "difference": apart.value,
        "difference_low": apart.low,
        "difference_high": apart.high,
    }


def _compared(
    wanted: _Wanted, one: Found, other: Found, changes: "Sequence[Change]", scores: dict[str, dict[str, float | None]]
) -> ComparisonRecord:
    from circuitcli.validation.comparison import anywhere

    shared, of_features = agreement(one, other), agreement(anywhere(one), anywhere(other))
    plan = wanted.plans[0]
    return ComparisonRecord(
        graph=wanted.graphs[0].head.name,
        graph_digest=content_digest(wanted.graphs[0]),
        against=wanted.graphs[1].head.name,
        against_digest=content_digest(wanted.graphs[1]),
        n_nodes=len(one.nodes),
        n_edges=len(one.edges),
        n_nodes_against=len(other.nodes),
        n_edges_against=len(other.edges),
        nodes=shared.nodes,
        edges=shared.edges,
        node_ranks=shared.node_ranks,
        edge_ranks=shared.edge_ranks,
        nodes_anywhere=of_features.nodes,
        edges_anywhere=of_features.edges,
        n_added=sum(change.action == "add" for change in changes),
        n_removed=sum(change.action == "remove" for change in changes),
        errors=plan.request.settings.validation.errors,
        ablation=plan.baseline,
        path=f"reports/{plan.name}.json",
        **scores,
    )


def _edit(wanted: _Wanted, change: "Change") -> ChangeRecord:
    source, target = change.edge or (None, None)
    return ChangeRecord(
        action=change.action,
        id=change.node,
        source=source,
        target=target,
        strength=change.strength,
        graph=wanted.graphs[0].head.name,
        against=wanted.graphs[1].head.name,
    )
