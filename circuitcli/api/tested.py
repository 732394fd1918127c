"""The circuit that `validate` tests: a graph, or names of nodes, with the prompts and coders that belong to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, cast

from circuitcli.api.arguments import wrong_type
from circuitcli.api.behaviours import Prompts, as_behaviour
from circuitcli.api.coders import SomeCoders, by_hook, digests, spliced
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.behaviours import Behaviour, own_examples
from circuitcli.attribution.examples import LeftOut
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.prompts import Prompt
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, ablated_nodes, content_digest, edges_between, strongest_nodes
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.records import GraphRecord
from circuitcli.saes.coders import Coders
from circuitcli.saes.cutting import cut
from circuitcli.settings.graph import Baseline, GraphSettings, Metric
from circuitcli.validation.edges import Edge
from circuitcli.validation.scores import at_spans, edges_on_other_prompts, on_other_prompts

_SAME = "give the coders that the graph was made with, or make the graph again"


@dataclass(frozen=True)
class Tested:
    """The nodes that are tested, and the graph's head if they are a graph's."""

    nodes: tuple[NodeId, ...]
    head: GraphRecord | None
    digest: str | None = None
    edges: tuple[Edge, ...] | None = None
    ranked: tuple[NodeId, ...] = ()

    @classmethod
    def of(cls, graph: object) -> "Tested":
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

    def on(self, prompts: Sequence[Prompt]) -> "Tested":
        """The circuit as it is tested on other prompts than its graph's own."""
        if self.head is None:
            return self
        n_positions = self.head.n_positions if self.head.n_prompts > 1 else None
        return replace(
            self,
            nodes=on_other_prompts(self.nodes, prompts, n_positions=n_positions),
            edges=edges_on_other_prompts(self.edges or (), prompts, n_positions=n_positions),
            ranked=on_other_prompts(self.ranked, prompts, n_positions=n_positions),
        )

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

    def panel(
        self, model: LanguageModel, coders: Coders, behaviour: Behaviour, *, sizes: GraphSettings, left_out: LeftOut
    ) -> Panel:
        """The prompts of a behaviour, to be run with these nodes at their baselines."""
        prompts = behaviour.encoded(
            model.tokenizer,
            model.adapter,
            positions="spans" if at_spans(self.nodes) else None,
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


def _metric(head: GraphRecord) -> Metric:
    return cast(Metric, head.metric)


def _baseline(head: GraphRecord) -> Baseline:
    return cast(Baseline, head.baseline)
