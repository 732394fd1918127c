"""What tests of graphs and of pins share: what is tested on what, loading it, and the SAEs that are only looked at."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import CircuitError, InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.runs import Fingerprint, digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.graphing import take_baseline
from circuitcli.stages.inputs import activation_digests
from circuitcli.stages.naming import REPORT, chosen_name
from circuitcli.stages.prompts import Example
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, load_saes

if TYPE_CHECKING:
    from circuitcli.attribution.baselines import Baseline
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign
    from circuitcli.validation.scores import Case

logger = logging.getLogger(__name__)

_NO_MATTER = (
    *PLACEMENT,
    *("validate.at_least", "validate.graph", "validate.prompts", "validate.pin", "validate.name"),
)
_OF_GRAPHS = ("validate.errors", "validate.samples", "validate.bootstrap", "validate.minimality")
_OF_PINS = ("validate.sequences",)


@dataclass(frozen=True)
class Plan:
    """What is tested: the nodes, the hook points that are spliced, the prompts and the metric.

    ``graph`` is the name of the graph, None for pins. Without examples the run's own text is what is tested on. ``row``
    holds the token ids of the graph's own `resample` baseline.
    """

    request: Request
    name: str
    graph: str | None
    nodes: tuple[NodeId, ...]
    hooks: tuple[HookPoint, ...]
    sources: Mapping[HookPoint, SaeSource]
    examples: tuple[Example, ...]
    metric: GraphSettings
    baseline: str
    row: Sequence[int] | None = None
    graph_digest: str | None = None

    @property
    def entry(self) -> str:
        """The name of the report's entry in the manifest."""
        return REPORT.entry(self.name)

    @property
    def report(self) -> Path:
        """The report's file."""
        return REPORT.path(self.request.run, self.name)

    @property
    def partial(self) -> Path:
        """What was measured before the report is whole."""
        return self.report.with_suffix(".partial.jsonl")

    def named(self) -> "Plan":
        """With the name that is asked for, or a default one that hits no other report."""
        chosen = chosen_name(
            self.request.run,
            REPORT,
            asked=self.request.settings.validation.name,
            default=self.name,
            fingerprint=self.fingerprint(),
            force=self.request.force,
        )
        return replace(self, name=chosen)

    def fingerprint(self) -> Fingerprint:
        """Over the settings that the stage reads, the nodes, the SAEs, the prompts and the cache if it is needed."""
        inputs = {f"SAE at {hook}": self.sources[hook].digest for hook in self.hooks}
        inputs["nodes"] = digest([str(node) for node in self.nodes])
        inputs["prompts"] = digest([asdict(example) for example in self.examples])
        metric = self.metric
        facts = [metric.metric, metric.counterfactual, metric.counterfactual_ids, metric.baseline_tokens, self.baseline]
        inputs["metric"] = digest([*facts, None if self.row is None else list(self.row)])
        if self.baseline in ("mean", "resample") or not self.examples:
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
    """The model with the spliced SAEs, and those that later hook points are only looked at with."""

    plan: Plan
    language_model: "LanguageModel"
    loaded: "Mapping[HookPoint, Foreign]"
    later: "Mapping[HookPoint, SparseCoder]"

    @classmethod
    def of(cls, plan: Plan) -> "Bench":
        """Load them."""
        from circuitcli.models.loading import load_model

        model = plan.request.settings.model
        language_model = load_model(model)
        loaded = load_saes(plan.sources, plan.hooks, model=model.name, adapter=language_model.adapter)
        return cls(plan, language_model, loaded, dict(_later(plan, language_model)))

    @property
    def spliced(self) -> "dict[HookPoint, SparseCoder]":
        """The SAEs through which the model is run."""
        return {hook: found.sae for hook, found in self.loaded.items()}

    def case(self, example: Example, *, shared: "Baseline | None" = None) -> "Case":
        """A prompt, run once, with its baseline, or one that it shares with others."""
        from circuitcli.attribution import subject as subjects
        from circuitcli.validation.scores import Case

        _check_target(example, n_ids=self.language_model.adapter.n_token_ids)
        subject, _ = subjects.build(
            self.language_model,
            self.spliced,
            self.plan.metric,
            prompt=example.written,
            target=example.target,
            foil=example.foil,
        )
        plan = self.plan
        if shared is None:
            shared = take_baseline(plan.request, plan.baseline, subject, self.language_model, plan.metric, row=plan.row)
        return Case(subject, shared, plan.nodes)

    def cases(self) -> "Iterator[Case]":
        """Those of all prompts, one after the other."""
        shared: Baseline | None = None
        for example in self.plan.examples:
            case = self.case(example, shared=shared)
            # These baselines are the same for every prompt, and the mean takes a pass over the cache.
            shared = case.baseline if self.plan.baseline in ("zero", "mean") else None
            yield case

    def warn_of_misfits(self, case: "Case") -> None:
        """Say of spliced SAEs of others that they do not fit."""
        clean, first = case.subject.clean, case.subject.prompt.first
        warn_of_misfits(
            self.plan.request, self.plan.sources, self.loaded, self.language_model, clean=clean, first=first
        )


def _check_target(example: Example, *, n_ids: int) -> None:
    if isinstance(example.target, int) and not 0 <= example.target < n_ids:
        shown = example.prompt[:40]
        raise InputError(
            f"the target of {shown!r} is token id {example.target}, and this model knows 0 to {n_ids - 1}",
            hint="name a token of this model, as text or as its id",
        )


def _later(plan: Plan, language_model: "LanguageModel") -> "Iterator[tuple[HookPoint, SparseCoder]]":
    """The SAEs, transcoders too, behind the first spliced hook point that are not spliced; bad ones are left out."""
    from circuitcli.attribution.subject import fitted

    model, adapter = plan.request.settings.model.name, language_model.adapter
    for hook, source in plan.sources.items():
        if hook in plan.hooks or not min(plan.hooks) < hook:
            continue
        try:
            found = load_saes({hook: source}, [hook], model=model, adapter=adapter, takes_transcoders=True)[hook]
            yield hook, fitted(found.sae, adapter)
        except CircuitError as error:
            logger.warning("features of %s are not looked at: %s", hook, error.message)
