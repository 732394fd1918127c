"""Putting a circuit to the test."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path as FilePath
from typing import Any, Literal, cast

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import checked, wrong_type
from circuitcli.api.baselines import baseline_rule
from circuitcli.api.behaviours import SKIP_BAD, Prompts, as_behaviour
from circuitcli.api.coders import SomeCoders, by_hook, digests, spliced
from circuitcli.api.models import as_model
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.behaviours import Behaviour, own_examples
from circuitcli.attribution.examples import LeftOut, Written
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, ablated_nodes, content_digest, edges_between, strongest_nodes
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId, without_numbers
from circuitcli.models.loading import LanguageModel
from circuitcli.records import CurveRecord, GraphRecord, ScoreRecord, VerdictRecord
from circuitcli.saes.coders import Coders
from circuitcli.saes.cutting import cut
from circuitcli.settings.graph import Baseline, GraphSettings, Metric
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation.edges import Edge
from circuitcli.validation.effects import effects_like
from circuitcli.validation.others import Means
from circuitcli.validation.scores import PanelCases, at_spans, edges_on_other_prompts, on_other_prompts
from circuitcli.validation.trial import Trial
from circuitcli.validation.verdict import facts_of, judge

_SAME = "give the coders that the graph was made with, or make the graph again"


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
    options: dict[str, Any] = {
        "errors": errors,
        "samples": samples,
        "bootstrap": bootstrap,
        "minimality": minimality,
        "edges": edges,
        "curve": curve,
        "basis": basis,
        "shuffled": shuffled,
    }
    settings = checked(ValidationSettings, **options)
    sizes = checked(GraphSettings, n_prompts=n_prompts, skip_bad=skip_bad, batch_size=batch_size)
    tested = _Tested.of(graph)
    model, left_out = as_model(model), LeftOut(allowed=skip_bad, hint=SKIP_BAD)
    named: dict[str, Any] = {"target": target, "foil": foil, "counterfactual": counterfactual}
    behaviour = tested.behaviour(prompts, metric=metric, baseline=baseline, left_out=left_out, **named)
    chosen = tested.coders(coders, model)
    is_own = prompts is None
    panel = _panel(model, chosen, behaviour, sizes, left_out, tested.nodes)
    nodes, between = tested.nodes, tested.edges
    length = tested.head.n_positions if tested.head is not None and tested.head.n_prompts > 1 else None
    if not is_own and tested.head is not None:
        nodes = on_other_prompts(nodes, panel.prompts, n_positions=length)
        between = edges_on_other_prompts(between or (), panel.prompts, n_positions=length)
    rows, drawn_with = tested.rows_drawn(seed) if is_own else ({}, seed)
    rule = baseline_rule(
        behaviour.baseline, chosen, model, cache=cache, n_tokens=tested.baseline_tokens, seed=drawn_with, rows=rows
    )
    if not is_own and tested.head is not None and behaviour.baseline == "mean-position":
        # Means by position are those of the prompts that the graph was found with.
        own = tested.behaviour(None, metric=metric, baseline=baseline, left_out=left_out, **named)
        rule = rule.over(_panel(model, chosen, own, sizes, left_out, tested.nodes).prompts)
    cases = PanelCases(replace(panel, baseline_of=rule.over(panel.prompts)), nodes)
    ranked = tested.ranked if is_own else on_other_prompts(tested.ranked, panel.prompts, n_positions=length)
    through = partial(_rule_through, rule.over(panel.prompts), model, cache)
    means = Means(through, effects_like(tested.head, sizes), ranked)
    if not is_own and tested.head is not None and (curve == "all" or basis is not None):
        own = tested.behaviour(None, metric=None, baseline=None, left_out=LeftOut(allowed=True))
        whole = sizes.model_copy(update={"n_prompts": None})
        found_on = _panel(model, chosen, own, whole, LeftOut(allowed=True), tested.nodes)
        means = replace(means, found_on=replace(found_on, baseline_of=rule.over(found_on.prompts)))
    if control is not None:
        means = replace(means, control=without_numbers(_Tested.of(control).nodes))
    trial = Trial(cases, settings, seed, sizes.batch_size, edges=between, means=means)
    about = {
        "graph": tested.name,
        "graph_digest": tested.digest,
        "ablation": behaviour.baseline,
        "n_nodes": len(nodes),
        "n_prompts": panel.n_prompts,
        "held_out": True if not is_own and tested.head is not None else None,
        "errors": errors,
    }
    return _scores(trial, about)


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


@dataclass(frozen=True)
class _Tested:
    """The nodes that are tested, and the graph's head if they are a graph's."""

    nodes: tuple[NodeId, ...]
    head: GraphRecord | None
    digest: str | None = None
    edges: tuple[Edge, ...] | None = None
    ranked: tuple[NodeId, ...] = ()

    @classmethod
    def of(cls, graph: object) -> "_Tested":
        """Raises SettingsError for what is no graph, InputError for one without nodes."""
        if isinstance(graph, CircuitGraph):
            about = content_digest(graph), edges_between(graph), strongest_nodes(graph)
            made = cls(ablated_nodes(graph), graph.head, *about)
        elif isinstance(graph, Iterable) and not isinstance(graph, str):
            names = [name for name in graph if name != OUTPUT]
            if not all(isinstance(name, str) for name in names):
                raise wrong_type("graph", graph, "a graph or names of nodes", hint="find_circuit() gives a graph")
            made = cls(tuple(dict.fromkeys(map(NodeId.parse, names))), None)
        else:
            raise wrong_type("graph", graph, "a graph or names of nodes", hint="find_circuit() gives a graph")
        if not made.nodes:
            raise InputError("there is no node to test", hint="raise down= and up= of find_circuit()")
        return made

    @property
    def name(self) -> str:
        """The graph's."""
        return "nodes" if self.head is None else self.head.name

    @property
    def baseline_tokens(self) -> int:
        """Cached tokens over which a mean baseline is taken."""
        told = None if self.head is None else self.head.baseline_tokens
        return told or GraphSettings().baseline_tokens

    def rows_drawn(self, seed: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """The rows of text that the graph's `resample` baseline comes from, and the seed of those not written down."""
        if self.head is None or self.head.baseline_ids is None:
            told = None if self.head is None or self.head.baseline != "resample" else self.head.seed
            return {}, seed if told is None else told
        return {0: self.head.baseline_ids}, seed

    def behaviour(
        self,
        prompts: Prompts | None,
        *,
        metric: Metric | None,
        baseline: Baseline | None,
        left_out: LeftOut,
        **named: Any,
    ) -> Behaviour:
        """What is tested on: other prompts, or the graph's own. Raises SettingsError if there are neither."""
        head = self.head
        if prompts is not None:
            if head is not None and not isinstance(prompts, Behaviour):
                metric, baseline = metric or _metric(head), baseline or _baseline(head)
            return as_behaviour(
                prompts, metric=metric, baseline=baseline, usual="mean", chat=False, left_out=left_out, **named
            )
        if head is None:
            raise SettingsError("names of nodes tell no prompt", hint="validate(model, coders, nodes, prompt)")
        given = [name for name, value in (*named.items(), ("metric", metric)) if value is not None]
        if given:
            raise SettingsError(
                f"{given[0]} is given, and a graph is tested on its own", hint="give other prompts too: prompts=..."
            )
        own = own_examples(head, folder=FilePath(), hint="give them: validate(model, coders, graph, prompts)")
        return Behaviour(own, _metric(head), baseline or _baseline(head))

    def coders(self, coders: SomeCoders, model: LanguageModel) -> Coders:
        """The coders that the graph was made with. Raises InputError if one is missing or is another."""
        if self.head is None:
            return spliced(coders, model, layers=None, sites=None)
        found, chosen = by_hook(coders), []
        for name, expected in self.head.saes.items():
            hook = HookPoint.parse(name)
            if hook not in found:
                raise InputError(f"the coder at {name} that graph '{self.name}' was made with is missing", hint=_SAME)
            writes = [HookPoint.parse(place) for place in self.head.written(name)]
            # What a coder that lies in no file is called by tells what it writes too.
            coder = cut(found[hook], writes) if {*writes} <= {*found[hook].writes} else found[hook]
            if digests({hook: coder})[hook] != expected:
                raise InputError(f"the coder at {name} is not the one that '{self.name}' was made with", hint=_SAME)
            chosen.append(coder)
        return spliced(chosen, model, layers=None, sites=None)


def _metric(head: GraphRecord) -> Metric:
    return cast(Metric, head.metric)


def _baseline(head: GraphRecord) -> Baseline:
    return cast(Baseline, head.baseline)


def _panel(
    model: LanguageModel,
    coders: Coders,
    behaviour: Behaviour,
    sizes: GraphSettings,
    left_out: LeftOut,
    nodes: Sequence[NodeId],
) -> Panel:
    prompts = behaviour.encoded(
        model.tokenizer,
        model.adapter,
        positions="spans" if at_spans(nodes) else None,
        most=sizes.n_prompts,
        left_out=left_out,
    )
    return Panel.of(
        model.adapter,
        coders,
        prompts,
        metric=behaviour.metric,
        positions=Positions.of("sum", prompts),
        baseline_of=BaselineRule("zero", coders),
        batch_size=sizes.batch_size,
    )


def _cells(record: ScoreRecord) -> tuple[str, str, str, str]:
    interval = "" if record.low is None or record.high is None else f"{record.low:.4f} to {record.high:.4f}"
    return record.name, f"{record.value:.4f}", interval, f"errors {record.errors}"


def _line(record: ScoreRecord) -> str:
    name, value, interval, errors = _cells(record)
    return f"{name:<28}{value:>9}  {interval:<20}{errors}".rstrip()
