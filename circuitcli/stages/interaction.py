"""``circuit validate --interaction``: how few edges between two hook points carry what the model does (SCALAR)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, digest_of
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, InteractionRecord, Record
from circuitcli.runs import Fingerprint, atomic
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.inputs import activation_digests
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.naming import REPORT, report_name
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.attribution.subject import Subject
    from circuitcli.models.loading import LanguageModel
    from circuitcli.validation.interaction import Bounded, Curve

_READ = (
    *("validate.interaction", "validate.bootstrap", "validate.sequences", "graph.ig_steps", "graph.n_prompts"),
    *("graph.skip_bad", "model.", "seed", "sae_path"),
)
# Points on the path of the ranking; pieces of the run's text unless more are asked for, and their tokens.
_STEPS, _PIECES, _LENGTH = 10, 4, 64


def run(request: Request) -> list[Record]:
    """The curve, made now or before; a killed test goes on.

    Raises SettingsError without a prompt and without a text, InputError for hook points without an SAE each.
    """
    wanted = _Wanted.of(request)
    return resumable(
        request,
        wanted.entry,
        wanted.fingerprint,
        lambda resumes: _work(wanted, resumes),
        partial=wanted.partial,
        keeps=True,
    )


@dataclass(frozen=True)
class _Wanted:
    """Two hook points with SAEs, and prompts, None for the run's own text."""

    request: Request
    name: str
    hooks: tuple[HookPoint, HookPoint]
    sources: dict[HookPoint, SaeSource]
    examples: tuple[Example, ...] | None
    left_out: LeftOut

    @classmethod
    def of(cls, request: Request) -> "_Wanted":
        settings = request.settings
        first, second = map(HookPoint.parse, settings.validation.interaction)
        left_out = LeftOut(allowed=settings.graph.skip_bad)
        examples = asked_examples(settings.graph, path=settings.validation.prompts, left_out=left_out)
        if examples is None and not request.records.of(ActivationsRecord):
            raise SettingsError(
                "--interaction has no prompt, and the run has no collected text", hint="add --prompt TEXT"
            )
        sources = sae_sources(request, stage="validate", layers={first.layer, second.layer})
        for hook in (first, second):
            if hook not in sources:
                raise InputError(f"no SAE at {hook}", hint=f"there are SAEs at {' '.join(map(str, sources))}")
        chosen = {hook: sources[hook] for hook in (first, second)}
        default = f"interaction-{first}-{second}"
        made = cls(request, default, (first, second), chosen, examples, left_out)
        name = report_name(
            request,
            asked=settings.validation.name,
            default=default,
            fingerprint=made.fingerprint,
        )
        return replace(made, name=name)

    @property
    def entry(self) -> str:
        """The name of the report's entry in the manifest."""
        return REPORT.entry(self.name)

    @property
    def partial(self) -> Path:
        """The points that were made before the report is whole."""
        return REPORT.path(self.request.run, self.name).with_suffix(".partial.jsonl")

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, the SAEs, and the prompts or the text."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        if self.examples is None:
            inputs |= activation_digests(self.request)
        else:
            inputs["prompts"] = digest_of(self.examples)
        return fingerprint(self.request, _READ, inputs, without=PLACEMENT)


def _work(wanted: _Wanted, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import load_model
    from circuitcli.render.measured import interaction as draw
    from circuitcli.stages.figures import drawn
    from circuitcli.validation.interaction import interaction

    settings = wanted.request.settings
    model = load_model(settings.model)
    subjects = tuple(_subjects(wanted, model))
    steps, size = settings.graph.ig_steps or _STEPS, settings.graph.batch_size
    with Ledger(wanted.partial, wanted.fingerprint.digest, resumes=resumes) as ledger:
        curve = interaction(subjects, *wanted.hooks, steps=steps, batch_size=size, keep=ledger.take)
    record = _record(wanted, curve, n_tokens=sum(subject.n_spliced for subject in subjects))
    with atomic(REPORT.path(wanted.request.run, wanted.name)) as stream:
        told = {**record.model_dump(exclude_none=True), "kl_of_prompts": curve.divergence.T.tolist()}
        json.dump(told, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    wanted.partial.unlink(missing_ok=True)
    plot = draw(record, title=f"Edges from {record.source} to {record.target}")
    return [record, *drawn(wanted.request.run, wanted.name, plot)], {}


def _subjects(wanted: _Wanted, model: "LanguageModel") -> "Iterator[Subject]":
    from circuitcli.attribution.prompts import Needs, encode_all
    from circuitcli.attribution.subject import build, fitted
    from circuitcli.saes.coders import Coders
    from circuitcli.validation.interaction import check_pair

    settings, adapter = wanted.request.settings, model.adapter
    loaded = load_saes(wanted.sources, wanted.hooks, model=settings.model.name, adapter=adapter)
    for one in loaded.values():
        adapter.check(one.sae.hook)
    check_pair(*(loaded[hook].sae for hook in wanted.hooks))
    coders = Coders.of(fitted(one.sae, adapter) for one in loaded.values())
    if wanted.examples is None:
        prompts = list(_pieces(wanted, model))
    else:
        needs, most = Needs(), settings.graph.n_prompts
        prompts = [
            *encode_all(wanted.examples, model.tokenizer, adapter, needs=needs, left_out=wanted.left_out, most=most)
        ]
    for prompt in prompts:
        yield build(adapter, coders, [prompt], metric="kl")


def _pieces(wanted: _Wanted, model: "LanguageModel") -> "Iterator[Prompt]":
    """The beginnings of the last blocks of the cached text, which training holds out."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.validation.pinned import MOST_TOKENS

    settings = wanted.request.settings.validation
    count = settings.sequences if "sequences" in settings.model_fields_set else _PIECES
    cache = ActivationCache(wanted.request.run.path / "activations", ())
    rows = range(max(0, cache.n_tokens - MOST_TOKENS), cache.n_tokens)
    blocks = [block for block in cache.blocks(rows.start, rows.stop) if len(block.ids) > 1]
    if not blocks:
        raise InputError("the collected text has no two tokens in a row", hint="add --prompt TEXT")
    for block in reversed(blocks[-count:]):
        ids = tuple(block.ids[:_LENGTH])
        yield Prompt("", ids, tuple(model.tokenizer.token_strings(ids)), model.tokenizer.n_bos(ids))


def _record(wanted: _Wanted, curve: "Curve", *, n_tokens: int) -> InteractionRecord:
    from circuitcli.validation.interaction import bounded

    settings = wanted.request.settings
    draws = {"bootstrap": settings.validation.bootstrap, "seed": settings.seed}
    points = [bounded(row, **draws) for row in curve.divergence]
    whole, above = curve.areas(curve.divergence), curve.areas(curve.above)
    areas = {
        "absolute": bounded(whole, **draws),
        "relative": bounded(whole / curve.n_possible, **draws),
        "absolute_above": bounded(above, **draws),
        "relative_above": bounded(above / curve.n_possible, **draws),
        "live_above": bounded(above / max(1, curve.n_live), **draws),
    }
    lows = [point.low for point in points if point.low is not None]
    highs = [point.high for point in points if point.high is not None]
    return InteractionRecord(
        name=wanted.name,
        source=str(wanted.hooks[0]),
        target=str(wanted.hooks[1]),
        n_edges=curve.n_edges,
        kl=tuple(point.value for point in points),
        kl_low=tuple(lows) or None,
        kl_high=tuple(highs) or None,
        floor=points[-1].value,
        unit="nats",
        n_live=curve.n_live,
        n_possible=curve.n_possible,
        n_prompts=curve.divergence.shape[1],
        n_tokens=n_tokens,
        path=f"reports/{wanted.name}.json",
        **{name: _told(area) for name, area in areas.items()},
    )


def _told(area: "Bounded") -> dict[str, float | None]:
    return {"value": area.value, "low": area.low, "high": area.high}
