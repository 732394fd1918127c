"""``circuit validate --scale``: what the model goes on to write with some features turned up or down."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.asked import asked_example
from circuitcli.attribution.examples import Example
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, NodeId, parse_scales
from circuitcli.records import FigureRecord, Record, SteeringRecord
from circuitcli.runs import Fingerprint, atomic
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import PLACEMENT
from circuitcli.settings.validation import ValidationSettings
from circuitcli.stages.naming import Reported, report_name
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, hook_of_pin, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.models.loading import LanguageModel
    from circuitcli.validation.steering import Steered

logger = logging.getLogger(__name__)

NAME = "steering"
_READ = (
    *("validate.scale", "validate.generate", "validate.temperature"),
    *("graph.prompt", "graph.chat", "model.", "seed", "sae_path"),
)


def check(settings: ValidationSettings, behaviour: GraphSettings) -> None:
    """Raise SettingsError where there is no prompt to write behind, or several."""
    if not settings.scale or settings.choices is not None:
        return
    if settings.prompts or behaviour.prompts:
        raise SettingsError("--scale writes behind one prompt, but --prompts names a file", hint="give one by --prompt")
    if behaviour.prompt is None and behaviour.prompt_ids is None:
        raise SettingsError("--scale needs a prompt to write behind", hint="add --prompt TEXT")


def run(request: Request) -> list[Record]:
    """Both continuations and how they differ, written now or before.

    Raises SettingsError without a prompt, InputError for features that are not there or active nowhere.
    """
    wanted = _Wanted.of(request)
    return resumable(request, wanted.entry, wanted.fingerprint, lambda resumes: _work(wanted), keeps=True)


def scaled(request: Request) -> tuple[dict[HookPoint, dict[int, float]], dict[HookPoint, SaeSource]]:
    """The factors of features that --scale names, by hook point, and the SAEs there. Raises InputError without one."""
    scales = parse_scales(request.settings.validation.scale)
    sources = sae_sources(request, stage="validate", layers={hook.layer for hook in scales})
    factors: dict[HookPoint, dict[int, float]] = {}
    for hook, of_hook in scales.items():
        place = hook_of_pin(hook, sources)
        if place not in sources:
            there = " ".join(map(str, sources))
            raise InputError(f"no SAE at {place}, where a feature is scaled", hint=f"there are SAEs at {there}")
        factors.setdefault(place, {}).update(of_hook)
    return factors, {hook: sources[hook] for hook in factors}


@dataclass(frozen=True)
class _Wanted(Reported):
    """A prompt, and the factors of features by the hook points of SAEs."""

    example: Example
    factors: dict[HookPoint, dict[int, float]]
    sources: dict[HookPoint, SaeSource]

    @classmethod
    def of(cls, request: Request) -> "_Wanted":
        settings = request.settings
        check(settings.validation, settings.graph)
        example = asked_example(settings.graph)
        assert example is not None
        made = cls(request, NAME, example, *scaled(request))
        name = report_name(
            request,
            asked=settings.validation.name,
            default=NAME,
            fingerprint=made.fingerprint,
        )
        return replace(made, name=name)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, and the SAEs."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        return fingerprint(self.request, _READ, inputs, without=(*PLACEMENT, "graph.prompts"))


def _work(wanted: _Wanted) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.prompts import encode_example
    from circuitcli.attribution.subject import fitted
    from circuitcli.models.generation import ends_of
    from circuitcli.models.loading import load_model
    from circuitcli.saes.coders import Coders
    from circuitcli.validation.steering import steer

    settings = wanted.request.settings
    model = load_model(settings.model)
    loaded = load_saes(wanted.sources, wanted.sources, model=settings.model.name, adapter=model.adapter)
    coders = Coders.of(fitted(one.sae, model.adapter) for one in loaded.values())
    prompt = encode_example(wanted.example, model.tokenizer, model.adapter)
    chosen = settings.validation
    found = steer(
        model.adapter,
        coders,
        prompt.ids,
        wanted.factors,
        first=prompt.first,
        n_tokens=chosen.generate,
        temperature=chosen.temperature,
        seed=settings.seed,
        ends=ends_of(model.adapter, model.tokenizer),
    )
    _warn_of_silence(found)
    record = _record(wanted, model, found)
    report = {**record.model_dump(exclude_none=True), "ids": [*prompt.ids], "tokens": [*prompt.tokens]}
    features = [{**asdict(seen), "node": seen.node.feature} for seen in found.features]
    with atomic(wanted.report) as stream:
        json.dump({**report, "features": features}, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    return [record, *_figure(wanted, record)], {}


def _figure(wanted: _Wanted, record: SteeringRecord) -> list[FigureRecord]:
    from circuitcli.render.measured import steering
    from circuitcli.stages.figures import drawn

    return drawn(wanted.request.run, wanted.name, steering(record, title=f"Steering: {record.prompt[-60:]}"))


def _warn_of_silence(found: "Steered") -> None:
    if silent := [seen.node.feature for seen in found.features if seen.is_silent]:
        logger.warning("%s: active nowhere, so its factor changes nothing", " ".join(silent))


def _record(wanted: _Wanted, model: "LanguageModel", found: "Steered") -> SteeringRecord:
    from circuitcli.validation.steering import Texts

    return SteeringRecord(
        name=wanted.name,
        prompt=wanted.example.prompt,
        factors={NodeId(h, index).feature: factor for h, f in wanted.factors.items() for index, factor in f.items()},
        **asdict(Texts.of(found, model.tokenizer)),
        unit="nats",
        temperature=wanted.request.settings.validation.temperature,
        active={seen.node.feature: seen.active_steered for seen in found.features},
        path=f"reports/{wanted.name}.json",
    )
