"""The graph that a request asks for: its name, prompts and coders, and what it is made from."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, digest_of
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint, parse_pins, parse_slice
from circuitcli.records import ActivationsRecord
from circuitcli.runs import Fingerprint, file_digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.behaviours import check_text, text_digests
from circuitcli.stages.inputs import activation_digests, read_graphs
from circuitcli.stages.naming import GRAPH, chosen_name, valid_name
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, sae_sources
from circuitcli.training.plan import n_held_out

logger = logging.getLogger(__name__)

# Of a slice of layers that is read without the model; no release has more.
_MOST_LAYERS = 1024

# Where the model runs and how many rows at once changes rounding only; the file to extend is an input.
_NO_MATTER = (*PLACEMENT, "graph.batch_size", "graph.extend", "graph.name", "graph.prompts")


@dataclass(frozen=True)
class Task:
    """One graph to make. ``asked`` holds the prompts that are asked for, None for the run's own text."""

    request: Request
    stage: str
    name: str
    positions: str
    baseline: str
    sources: Mapping[HookPoint, SaeSource]
    foreign: tuple[str, ...]
    asked: tuple[Example, ...] | None
    left_out: LeftOut

    @property
    def settings(self) -> GraphSettings:
        """The section of the settings that says what is explained."""
        return self.request.settings.graph

    @property
    def takes_own_text(self) -> bool:
        """Whether no prompt is given, so that predictions of the run's own text are explained."""
        return self.asked is None

    @property
    def searches(self) -> bool:
        """Whether the circuit is searched for by resampling."""
        return self.stage == "graph-naive" and self.request.settings.search.by is not None

    @property
    def n_search_rows(self) -> int:
        """How many of the run's first tokens a search takes values from: as many as it asks for, none held out."""
        # A run without text is refused after its name is chosen, which looks at the fingerprint.
        n_rows = min((record.n_tokens for record in self.request.records.of(ActivationsRecord)), default=0)
        return min(self.request.settings.search.tokens, n_rows - n_held_out(self.request.settings, n_rows=n_rows))

    @property
    def keeps_prompts(self) -> bool:
        """Whether the prompts are those of a file, or several, of which a head cannot tell all."""
        return self.settings.prompts is not None or (self.takes_own_text and self.settings.sequences > 1)

    @property
    def entry(self) -> str:
        """The name of the graph's entry in the manifest."""
        return GRAPH.entry(self.name)

    @property
    def path(self) -> Path:
        """The graph's file."""
        return GRAPH.path(self.request.run, self.name)

    def fingerprint(self) -> Fingerprint:
        """Over the settings that the stage reads, the SAEs, the cache if it is needed, and what is extended."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        inputs["command"] = self.stage
        if self.baseline in ("mean", "resample"):
            inputs |= activation_digests(self.request)
        if self.takes_own_text:
            inputs |= text_digests(self.request)
        if self.settings.prompts is not None and self.asked is not None:
            inputs["prompts"] = digest_of(self.asked)
        if self.settings.extend is not None:
            inputs["graph to extend"] = file_digest(Path(self.settings.extend))
        prefixes = ["graph.", "model.", "seed", "sae_path"]
        if self.searches:
            inputs |= activation_digests(self.request) | {"tokens to draw from": str(self.n_search_rows)}
            prefixes.append("search.")
        return fingerprint(self.request, prefixes, inputs, without=(*_NO_MATTER, *self.foreign))


def task_of(request: Request, stage: str, *, name: str, positions: str, baseline: str, foreign: Iterable[str]) -> Task:
    """The graph that a request asks for.

    Raises SettingsError without a prompt or for settings that do not go together, InputError without SAEs.
    """
    settings = request.settings.graph
    check_settings(settings)
    check_text(request, stage=stage)
    _warn_of_unused(settings, baseline=settings.baseline or baseline)
    if settings.extend is not None:
        read_graphs(Path(settings.extend))
    left_out = LeftOut(allowed=settings.skip_bad)
    task = Task(
        request=request,
        stage=stage,
        name=settings.name or name,
        positions=positions,
        baseline=settings.baseline or baseline,
        sources=sae_sources(
            request, stage=stage, layers=_named_layers(settings), within=_plain_slice(settings) or None
        ),
        foreign=tuple(f"graph.{field}" for field in foreign),
        # A pipe can be read once only.
        asked=asked_examples(settings, left_out=left_out),
        left_out=left_out,
    )
    chosen = chosen_name(
        request.run,
        GRAPH,
        asked=settings.name,
        default=name,
        fingerprint=task.fingerprint(),
        force=request.force,
    )
    return replace(task, name=chosen)


def _named_layers(settings: GraphSettings) -> set[int]:
    """Layers at which SAEs of a whole release are wanted: those of pins, and of a slice that no model is needed for."""
    return {*_plain_slice(settings), *(hook.layer for hook in parse_pins(settings.pin))}


def _plain_slice(settings: GraphSettings) -> Collection[int]:
    """The layers of the graph where no model is needed to tell them, as it is for ``-2:``; else nothing."""
    named = parse_slice(settings.layers or "0:0")
    start, stop = named.start or 0, named.stop
    is_plain = stop is not None and min(start, stop) >= 0
    return range(start, min(stop, _MOST_LAYERS), named.step or 1) if is_plain else ()


def check_settings(settings: GraphSettings) -> None:
    """Raise SettingsError for a name that is none, and for settings of which one makes no sense with another."""
    metric = settings.metric
    if settings.name is not None:
        valid_name(settings.name)
    if metric == "cross-entropy" and settings.positions == "last":
        raise SettingsError(
            "nothing at the last position can change the cross-entropy, which ends with the prompt's last token",
            hint="use --positions all or sum, or --metric log-prob",
        )
    if metric == "logit-diff" and settings.foil is None and settings.prompts is None:
        raise SettingsError("the metric logit-diff needs a foil", hint="add --foil TOKEN")
    if settings.foil is not None and metric != "logit-diff":
        raise SettingsError(f"the metric {metric} takes no foil", hint="add --metric logit-diff, or leave out --foil")
    if settings.target is not None and metric in ("cross-entropy", "kl"):
        raise SettingsError(
            f"the metric {metric} takes no target", hint="use --metric log-prob or logit-diff, or leave out --target"
        )


def _warn_of_unused(settings: GraphSettings, *, baseline: str) -> None:
    if (settings.counterfactual or settings.counterfactual_ids) is not None and baseline != "counterfactual":
        logger.warning("the baseline %s uses no counterfactual prompt; --baseline counterfactual does", baseline)
