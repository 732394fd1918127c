"""Putting a circuit to the test."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any, Literal

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import checked
from circuitcli.api.baselines import baseline_rule
from circuitcli.api.behaviours import SKIP_BAD, Prompts
from circuitcli.api.coders import SomeCoders
from circuitcli.api.models import as_model
from circuitcli.api.tested import Tested
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.examples import LeftOut, Written
from circuitcli.attribution.panel import Panel
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import without_numbers
from circuitcli.models.loading import LanguageModel
from circuitcli.records import CurveRecord, ScoreRecord, VerdictRecord
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import Baseline, GraphSettings, Metric
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation.effects import effects_like
from circuitcli.validation.others import Means
from circuitcli.validation.scores import PanelCases
from circuitcli.validation.trial import Trial
from circuitcli.validation.verdict import facts_of, judge


@dataclass(frozen=True)
class Scores(Sequence[ScoreRecord]):
    """What a test of a circuit measured; ``scores["faithfulness"]`` finds one by name under the judged error policy."""

    records: tuple[ScoreRecord, ...]
    errors: str
    curves: tuple[CurveRecord, ...] = ()
    verdict: VerdictRecord | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ScoreRecord]:
        return iter(self.records)

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            return self.records[name]
        for record in self.records:
            if record.name == name and record.errors in (self.errors, None):
                return record
        known = " ".join(dict.fromkeys(record.name for record in self.records))
        raise KeyError(f"no score {name!r}; there are {known}")

    @property
    def faithfulness(self) -> float:
        """The share of the behaviour that the circuit keeps by itself."""
        return float(self["faithfulness"].value)

    @property
    def completeness(self) -> float:
        """The share that is left without the circuit; lower is better."""
        return float(self["completeness"].value)

    def rows(self) -> tuple[dict[str, Any], ...]:
        """A plain mapping for each score, for tables."""
        return tuple(record.model_dump(exclude_none=True, exclude={"kind"}) for record in self.records)

    def __str__(self) -> str:
        return "\n".join([*self._said(), *map(_line, self.records)])

    def _said(self) -> list[str]:
        """The verdict, which comes first."""
        return [] if self.verdict is None else [f"{self.verdict.verdict}: {'; '.join(self.verdict.why)}"]

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(record))}</tr>" for record in self.records)
        return "".join(f"<p>{escape(line)}</p>" for line in self._said()) + f"<table>{rows}</table>"


def validate(
    model: LanguageModel,
    coders: SomeCoders,
    graph: CircuitGraph | Iterable[str],
    prompts: Prompts | None = None,
    *,
    target: str | int | None = None,
    foil: str | int | None = None,
    counterfactual: Written | None = None,
    metric: Metric | None = None,
    baseline: Baseline | None = None,
    cache: ActivationCache | None = None,
    errors: Literal["nodes", "kept", "removed"] = "nodes",
    samples: int = 100,
    bootstrap: int = 1000,
    minimality: bool = True,
    edges: bool = True,
    curve: Literal["none", "graph", "all"] = "graph",
    control: CircuitGraph | None = None,
    basis: Literal["neurons"] | None = None,
    shuffled: bool = True,
    n_prompts: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> Scores:
    """How much of a behaviour a circuit is, by running the model with its nodes alone, and with all but these.

        scores = circuit.validate(model, coders, graph)
        scores.faithfulness, scores["minimality"].node; print(scores)
        scores = circuit.validate(model, coders, graph, Path("test.jsonl"))       # on other prompts
        scores = circuit.validate(model, coders, ["resid.1/17", "mlp.2/error"], "for i in range(")

    graph: as `find_circuit` gives it, or names of nodes. prompts: what it is tested on, as for `find_circuit`; by
    default its own. On other prompts a node counts at all positions, unless the graph is of several prompts and all are
    equally long. baseline: what nodes outside are set to; by
    default as in the graph. errors: whether error terms are nodes like others, all kept, or all removed; scores are
    taken under each, and this one is judged and set beside ``samples`` random circuits of the same shape. bootstrap:
    resamples of the prompts for the interval. minimality: also measure the circuit without each of its nodes.
    edges: also measure what its edges keep alone. curve: faithfulness of the graph's strongest nodes and edges, and
    with "all" of the strongest of all nodes, in ``scores.curves``. control: another behaviour's graph, basis="neurons",
    shuffled (the decoders' rows exchanged): what the circuit should keep more than. ``scores.verdict`` is what it all
    comes to.

    Raises InputError for coders that are not the graph's, and where taking all nodes away changes nothing.
    """
    settings = checked(
        ValidationSettings,
        errors=errors,
        samples=samples,
        bootstrap=bootstrap,
        minimality=minimality,
        edges=edges,
        curve=curve,
        basis=basis,
        shuffled=shuffled,
    )
    sizes = checked(GraphSettings, n_prompts=n_prompts, skip_bad=skip_bad, batch_size=batch_size)
    tested, model, left_out = Tested.of(graph), as_model(model), LeftOut(allowed=skip_bad, hint=SKIP_BAD)
    named: dict[str, Any] = {"target": target, "foil": foil, "counterfactual": counterfactual}
    behaviour = tested.behaviour(prompts, metric=metric, baseline=baseline, left_out=left_out, **named)
    chosen = tested.coders(coders, model)
    panel = tested.panel(model, chosen, behaviour, sizes=sizes, left_out=left_out)
    is_own = prompts is None
    is_held_out = not is_own and tested.head is not None
    rows, drawn_with = tested.rows_drawn(seed) if is_own else ({}, seed)
    rule = baseline_rule(
        behaviour.baseline, chosen, model, cache=cache, n_tokens=tested.baseline_tokens, seed=drawn_with, rows=rows
    )
    if is_held_out and behaviour.baseline == "mean-position":
        # Means by position are those of the prompts that the graph was found with.
        own = tested.behaviour(None, metric=metric, baseline=baseline, left_out=left_out, **named)
        rule = rule.over(tested.panel(model, chosen, own, sizes=sizes, left_out=left_out).prompts)
    circuit = tested if is_own else tested.on(panel.prompts)
    means = Means(
        partial(_rule_through, rule.over(panel.prompts), model, cache),
        effects_like(tested.head, sizes),
        circuit.ranked,
        control=None if control is None else without_numbers(Tested.of(control).nodes),
    )
    if is_held_out and (curve == "all" or basis is not None):
        means = replace(means, found_on=_found_on(tested, model, chosen, sizes, rule))
    cases = PanelCases(replace(panel, baseline_of=rule.over(panel.prompts)), circuit.nodes)
    about = {
        "graph": tested.name,
        "graph_digest": tested.digest,
        "ablation": behaviour.baseline,
        "n_nodes": len(circuit.nodes),
        "n_prompts": panel.n_prompts,
        "held_out": is_held_out or None,
        "errors": errors,
    }
    return _scores(Trial(cases, settings, seed, sizes.batch_size, edges=circuit.edges, means=means), about)


def _found_on(tested: Tested, model: LanguageModel, coders: Coders, sizes: GraphSettings, rule: BaselineRule) -> Panel:
    """The prompts that the graph was found on, all of them."""
    left_out = LeftOut(allowed=True)
    own = tested.behaviour(None, metric=None, baseline=None, left_out=left_out)
    whole = sizes.model_copy(update={"n_prompts": None})
    panel = tested.panel(model, coders, own, sizes=whole, left_out=LeftOut(allowed=True))
    return replace(panel, baseline_of=rule.over(panel.prompts))


def _scores(trial: Trial, about: Mapping[str, Any]) -> Scores:
    """All that a test finds."""
    errors = about["errors"]
    measured = tuple(one.record({name: about[name] for name in about if name != "errors"}) for one in trial.measured())
    curves = tuple(curve.record(about) for curve in trial.faithfulness_curves())
    facts = facts_of(measured)
    return Scores(measured, errors, curves, None if facts is None else judge(facts).record(about))


def _rule_through(
    rule: BaselineRule, model: LanguageModel, cache: ActivationCache | None, coders: Coders
) -> BaselineRule:
    """The rule of a baseline through other coders."""
    options: dict[str, Any] = {"cache": cache, "n_tokens": rule.n_tokens, "seed": rule.seed, "rows": rule.rows}
    return baseline_rule(rule.kind, coders, model, **options).over(rule.prompts)


def _cells(record: ScoreRecord) -> tuple[str, str, str, str]:
    interval = "" if record.low is None or record.high is None else f"{record.low:.4f} to {record.high:.4f}"
    return record.name, f"{record.value:.4f}", interval, f"errors {record.errors}"


def _line(record: ScoreRecord) -> str:
    name, value, interval, errors = _cells(record)
    return f"{name:<28}{value:>9}  {interval:<20}{errors}".rstrip()
