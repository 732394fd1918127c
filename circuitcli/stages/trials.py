"""What tests of graphs and of pins share: what is tested on what, loading it, and the SAEs that are only looked at."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.examples import Example, LeftOut, digest_of
from circuitcli.errors import CircuitError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.runs import Fingerprint, digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.graphing import baseline_rule
from circuitcli.stages.inputs import activation_digests
from circuitcli.stages.naming import Reported, report_name
from circuitcli.stages.request import fingerprint
from circuitcli.stages.saes import SaeSource, load_saes

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import BaselineRule
    from circuitcli.attribution.panel import Panel
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.coders import Coders
    from circuitcli.saes.exchange.tensors import Foreign
    from circuitcli.validation.edges import Edge
    from circuitcli.validation.others import Means
    from circuitcli.validation.scores import Case, PanelCases

logger = logging.getLogger(__name__)

_NO_MATTER = (
    *PLACEMENT,
    *("validate.at_least", "validate.graph", "validate.prompts", "validate.pin", "validate.name"),
    *("validate.control_graph", "validate.stability", "validate.rival", "validate.sae_seeds"),
    *("validate.scale", "validate.generate", "validate.temperature", "validate.against", "validate.interaction"),
    *("validate.choices", "validate.choices_by", "validate.shots"),
)
_OF_GRAPHS = (
    *("validate.errors", "validate.samples", "validate.bootstrap", "validate.minimality"),
    *("validate.edges", "validate.ablations", "validate.curve", "validate.basis", "validate.shuffled"),
)
_OF_PINS = ("validate.sequences",)


@dataclass(frozen=True)
class Plan(Reported):
    """What is tested: the nodes, the hook points that are spliced, the prompts and the metric.

    ``graph`` is the name of the graph, None for pins. Without examples the run's own text is what is tested on. ``row``
    holds the token ids of the graph's own `resample` baseline, ``drawn_with`` the seed of those of many prompts.
    ``writes``: what the graph's coders write, None for all. ``left_out`` takes what is wrong with single prompts.
    ``found_with``: the graph's own prompts, where others are tested and the baseline depends on its own.
    ``n_positions``: how long the prompts are that the graph is a mean over. ``edges``: the graph's, strongest first, as
    ``ranked`` has its nodes. ``control``: the nodes of another behaviour's graph, as they are named in other prompts.
    ``effects``: how the graph's effects were taken. ``found_on``: the graph's own prompts, where others are tested and
    these are needed.
    """

    graph: str | None
    nodes: tuple[NodeId, ...]
    hooks: tuple[HookPoint, ...]
    sources: Mapping[HookPoint, SaeSource]
    examples: tuple[Example, ...]
    metric: GraphSettings
    baseline: str
    row: Sequence[int] | None = None
    drawn_with: int | None = None
    graph_digest: str | None = None
    writes: frozenset[HookPoint] | None = None
    n_positions: int | None = None
    edges: tuple["Edge", ...] = ()
    ranked: tuple[NodeId, ...] = ()
    control: tuple[NodeId, ...] | None = None
    effects: GraphSettings | None = None
    found_on: tuple[Example, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    found_with: tuple[Example, ...] = ()

    @property
    def ablations(self) -> tuple[str, ...]:
        """Further baselines than the judged one."""
        asked = self.request.settings.validation.ablations
        return tuple(dict.fromkeys(name for name in asked if name != self.baseline))

    def named(self) -> "Plan":
        """With the name that is asked for, or a default one that hits no other report."""
        chosen = report_name(
            self.request,
            asked=self.request.settings.validation.name,
            default=self.name,
            fingerprint=self.fingerprint(),
        )
        return replace(self, name=chosen)

    def fingerprint(self) -> Fingerprint:
        """Over the settings that the stage reads, the nodes, the SAEs, the prompts and the cache if it is needed."""
        inputs = {f"SAE at {hook}": self.sources[hook].digest for hook in self.hooks}
        inputs["nodes"] = digest([str(node) for node in self.nodes])
        inputs["edges"] = digest([f"{source} {target}" for source, target in self.edges])
        inputs["ranks"] = digest([str(node) for node in self.ranked])
        inputs["control"] = digest([str(node) for node in self.control or ()])
        inputs["effects"] = digest([self.effects.method, self.effects.ig_steps] if self.effects else [])
        inputs["found on"] = digest_of(self.found_on)
        inputs["prompts"] = digest_of(self.examples)
        metric = self.metric
        facts = [metric.metric, metric.n_prompts, metric.skip_bad, metric.baseline_tokens, self.baseline]
        drawn = [] if self.drawn_with is None else [self.drawn_with]
        inputs["metric"] = digest([*facts, None if self.row is None else list(self.row), *drawn])
        if {"mean", "resample"} & {self.baseline, *self.ablations} or not self.examples:
            inputs |= activation_digests(self.request)
        unread = _OF_PINS if self.graph is not None else _OF_GRAPHS
        return fingerprint(
            self.request, ("validate.", "model.", "seed", "sae_path"), inputs, without=(*_NO_MATTER, *unread)
        )

    def about(self, **more: Any) -> dict[str, Any]:
        """What every score says of how it was measured."""
        return {
            "graph": self.graph or self.name,
            "graph_digest": self.graph_digest,
            "ablation": self.baseline,
            "n_nodes": len(self.nodes),
            **more,
        }


@dataclass(frozen=True)
class Bench:
    """The model with the spliced coders, and those that later hook points are only looked at with."""

    plan: Plan
    language_model: "LanguageModel"
    loaded: "Mapping[HookPoint, Foreign]"
    coders: "Coders"
    later: "Mapping[HookPoint, SparseCoder]"

    @classmethod
    def of(cls, plan: Plan) -> "Bench":
        """Load them. Raises InputError if two coders explain one hook point."""
        from circuitcli.attribution.subject import fitted
        from circuitcli.models.loading import load_model
        from circuitcli.saes.coders import Coders

        model = plan.request.settings.model
        language_model = load_model(model)
        adapter = language_model.adapter
        loaded = load_saes(plan.sources, plan.hooks, model=model.name, adapter=adapter, writes=plan.writes)
        coders = Coders.of(fitted(one.sae, adapter) for one in loaded.values())
        return cls(plan, language_model, loaded, coders, dict(_later(plan, language_model)))

    @cached_property
    def rule(self) -> "BaselineRule":
        """How the judged baseline is taken."""
        return self.rule_through(self.coders)

    def rule_through(self, coders: "Coders") -> "BaselineRule":
        """The same through other coders. Raises InputError for what was not collected."""
        plan = self.plan
        rows = {} if plan.row is None else {0: plan.row}
        rule = baseline_rule(plan.request, plan.baseline, coders, plan.metric, rows=rows, seed=plan.drawn_with)
        return rule.over(self._encoded(plan.found_with)) if plan.found_with else rule

    @cached_property
    def prompts(self) -> "tuple[Prompt, ...]":
        """What is tested on. Raises InputError for prompts that cannot be used."""
        return self._encoded(self.plan.examples, most=self.plan.metric.n_prompts)

    def _encoded(self, examples: Sequence[Example], *, most: int | None = None) -> "tuple[Prompt, ...]":
        """Examples in tokens. Raises InputError for those that cannot be used."""
        from circuitcli.attribution.prompts import Needs, encode_all
        from circuitcli.validation.scores import at_spans

        plan = self.plan
        baseline = "counterfactual" if "counterfactual" in plan.ablations else plan.baseline
        # What is wrong with the graph's own prompts is not told among those that are tested.
        left_out = plan.left_out if examples is plan.examples else LeftOut(allowed=plan.left_out.allowed)
        return encode_all(
            examples,
            self.language_model.tokenizer,
            self.language_model.adapter,
            needs=Needs.of(metric=plan.metric.metric, baseline=baseline, spans=at_spans(plan.nodes)),
            left_out=left_out,
            most=most,
        )

    def _panel(self, prompts: "Sequence[Prompt]") -> "Panel":
        from circuitcli.attribution.panel import Panel
        from circuitcli.attribution.positions import Positions

        return Panel.of(
            self.language_model.adapter,
            self.coders,
            prompts,
            metric=self.plan.metric.metric,
            positions=Positions.of("sum", prompts),
            baseline_of=self.rule,
            batch_size=self.plan.metric.batch_size,
            token_names=self.language_model.tokenizer.token_strings,
        )

    def cases(self) -> "PanelCases":
        """The prompts, in batches that run when they are needed. Raises InputError for prompts that cannot be used."""
        from circuitcli.validation.scores import PanelCases

        return PanelCases(self._panel(self.prompts), self.named(self.plan.nodes))

    def means(self) -> "Means | None":
        """What the circuit is compared by; None of pins."""
        from circuitcli.validation.others import Means

        plan = self.plan
        if plan.effects is None:
            return None
        found_on = self._panel(self._encoded(plan.found_on)) if plan.found_on else None
        return Means(self.rule_through, plan.effects, self.named(plan.ranked), found_on, plan.control)

    def named(self, nodes: "Sequence[NodeId]") -> "tuple[NodeId, ...]":
        """A graph's nodes as they are called in these prompts; see `on_other_prompts`."""
        from circuitcli.validation.scores import on_other_prompts

        has_others = self.plan.request.settings.validation.prompts is not None
        return on_other_prompts(nodes, self.prompts, n_positions=self.plan.n_positions) if has_others else tuple(nodes)

    @cached_property
    def edges(self) -> "tuple[Edge, ...]":
        """The graph's edges likewise."""
        from circuitcli.validation.scores import edges_on_other_prompts

        plan = self.plan
        if plan.request.settings.validation.prompts is None:
            return plan.edges
        return edges_on_other_prompts(plan.edges, self.prompts, n_positions=plan.n_positions)

    def under(self, ablations: Iterable[str], cases: "PanelCases") -> "dict[str, PanelCases]":
        """The same cases under other baselines, by name."""
        from circuitcli.attribution.panel import KEPT_BYTES, Kept
        from circuitcli.validation.scores import PanelCases

        plan, found = self.plan, {}
        for name in ablations:
            rule = baseline_rule(plan.request, name, self.coders, plan.metric, rows={})
            panel = replace(cases.panel, baseline_of=rule.over(cases.panel.prompts), kept=Kept(KEPT_BYTES // 4))
            found[name] = PanelCases(panel, cases.nodes)
        return found

    def warn_of_misfits(self, case: "Case") -> None:
        """Say of spliced SAEs of others that they do not fit."""
        clean, first = case.subject.clean, case.subject.first
        warn_of_misfits(
            self.plan.request, self.plan.sources, self.loaded, self.language_model, clean=clean, first=first
        )


def _later(plan: Plan, language_model: "LanguageModel") -> "Iterator[tuple[HookPoint, SparseCoder]]":
    """The SAEs, transcoders too, behind the first spliced hook point that are not spliced; bad ones are left out."""
    from circuitcli.attribution.subject import fitted

    model, adapter = plan.request.settings.model.name, language_model.adapter
    for hook, source in plan.sources.items():
        if hook in plan.hooks or not min(plan.hooks) < hook:
            continue
        try:
            # Its codes alone are looked at: one decoder is enough to load it.
            writes = source.place.writes[:1]
            found = load_saes({hook: source}, [hook], model=model, adapter=adapter, writes=writes)[hook]
            yield hook, fitted(found.sae, adapter)
        except CircuitError as error:
            logger.warning("features of %s are not looked at: %s", hook, error.message)
