"""``circuit validate --interaction``: how few edges between hook points carry what the model does (SCALAR).

All pairs are measured in one process, with the model loaded once. Attributions and points of the curves are kept as
soon as they are there, so that a killed test goes on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.hookpoints import HookPoint
from circuitcli.progress import note
from circuitcli.records import AttributionsRecord, InteractionRecord, Record
from circuitcli.runs import atomic
from circuitcli.stages.interaction_asked import Wanted
from circuitcli.stages.interaction_asked import prompts as prompts_of
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.saes import load_saes
from circuitcli.validation.pairs import Pair

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder
    from circuitcli.validation.between import Between
    from circuitcli.validation.feature_edges import Attributions
    from circuitcli.validation.interaction import Curve
    from circuitcli.validation.scores import Score


def run(request: Request) -> list[Record]:
    """The curves, made now or before; a killed test goes on.

    Raises SettingsError without a prompt and without a text, InputError for hook points without an SAE each.
    """
    wanted = Wanted.of(request)
    return resumable(
        request,
        wanted.entry,
        wanted.fingerprint,
        lambda resumes: _work(wanted, resumes),
        partial=wanted.partial,
        keeps=True,
    )


def _work(wanted: Wanted, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import load_model
    from circuitcli.render.measured import interactions as draw
    from circuitcli.stages.figures import drawn

    model = load_model(wanted.request.settings.model)
    coders = _coders(wanted, model)
    prompts = tuple(prompts_of(wanted, model))
    made: list[Record] = []
    told: list[dict[str, Any]] = []
    with Ledger(wanted.partial, wanted.fingerprint.digest, resumes=resumes) as ledger:
        for number, pair in enumerate(wanted.pairs, 1):
            if len(wanted.pairs) > 1:
                note(f"pair {number} of {len(wanted.pairs)}: {pair[0]} -> {pair[1]}")
            one = _Measured.of(wanted, model, coders, prompts, pair, ledger=ledger, resumes=resumes)
            made += one.records(wanted)
            told += one.told(wanted)
    if told:
        with atomic(wanted.report) as stream:
            whole = told[0] if len(wanted.pairs) == 1 else {"name": wanted.name, "pairs": told}
            json.dump(whole, stream, indent=1, ensure_ascii=False)
            stream.write("\n")
    for path in (wanted.partial, *(_rest(wanted, pair) for pair in wanted.pairs)):
        path.unlink(missing_ok=True)
    curves = [record for record in made if isinstance(record, InteractionRecord)]
    return [*made, *drawn(wanted.request.run, wanted.name, draw(curves) if curves else None)], {}


def _rest(wanted: Wanted, pair: Pair) -> Path:
    """The attributions of a pair, before the report is whole."""
    return wanted.report.with_name(f"{wanted.name}.{pair[0]}-{pair[1]}.partial.safetensors")


@dataclass(frozen=True)
class _Measured:
    """What was found of one pair; the curve is None where attributions alone are asked for."""

    pair: Pair
    found: "Attributions"
    curve: "Curve | None"
    n_prompts: int
    n_tokens: int

    @classmethod
    def of(
        cls,
        wanted: Wanted,
        model: "LanguageModel",
        coders: "Mapping[HookPoint, SparseCoder]",
        prompts: "tuple[Prompt, ...]",
        pair: Pair,
        *,
        ledger: Ledger,
        resumes: bool,
    ) -> "_Measured":
        from circuitcli.validation import attribution_files
        from circuitcli.validation.feature_edges import Method, attributions, ordered
        from circuitcli.validation.interaction import interaction
        from circuitcli.validation.scores import steps_named

        settings = wanted.request.settings
        asked = settings.interaction
        between = [*_between(wanted, model, coders, prompts, pair)]
        method = Method(asked.method, wanted.n_steps, asked.measure)
        make = partial(attributions, between, method)
        found = attribution_files.kept(_rest(wanted, pair), make, resumes=resumes)
        n_tokens, curve = sum(one.subject.n_spliced for one in between), None
        if asked.points != "none":
            order = ordered(found, asked.order, seed=settings.seed)
            curve = interaction(
                between,
                order,
                n_live=int(found.live_units.sum()) * int(found.live_features.sum()),
                n_possible=found.n_possible,
                points=wanted.points,
                rule=asked.rule,
                keep=steps_named(f"{pair[0]},{pair[1]}", ledger.take),
            )
        return cls(pair, found, curve, len(between), n_tokens)

    def records(self, wanted: Wanted) -> Iterator[Record]:
        """Of the attributions, which are stored now, and of the curve."""
        from circuitcli.validation import attribution_files

        asked, (source, target) = wanted.request.settings.interaction, self.pair
        path = wanted.report.with_name(f"{wanted.name}.{source}-{target}.safetensors")
        yield AttributionsRecord(
            name=wanted.name,
            source=str(source),
            target=str(target),
            method=asked.method,
            measure=asked.measure,
            n_sources=len(self.found.live_units),
            n_targets=len(self.found.live_features),
            n_nonzero=int((self.found.values > 0).sum()),
            n_kept=attribution_files.stored(self.found, path, at_most=asked.kept_edges),
            n_prompts=self.n_prompts,
            n_tokens=self.n_tokens,
            path=f"reports/{path.name}",
        )
        if self.curve is not None:
            yield _record(wanted, self.curve, self.pair, n_tokens=self.n_tokens)

    def told(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """What the report holds: the record, and the curve of each prompt."""
        if self.curve is not None:
            record = _record(wanted, self.curve, self.pair, n_tokens=self.n_tokens)
            yield {
                **record.model_dump(exclude_none=True),
                "kl_of_prompts": self.curve.divergence.T.tolist(),
                "floor_of_prompts": self.curve.least.tolist(),
            }


def _coders(wanted: Wanted, model: "LanguageModel") -> "Mapping[HookPoint, SparseCoder]":
    """The SAEs of all pairs, on the model's device. Raises InputError for a pair without edges, before any is made."""
    from circuitcli.attribution.subject import fitted
    from circuitcli.validation.interaction import check_pair

    settings, adapter = wanted.request.settings, model.adapter
    loaded = load_saes(wanted.sources, wanted.sources, model=settings.model.name, adapter=adapter)
    for one in loaded.values():
        adapter.check(one.sae.hook)
    for pair in wanted.pairs:
        check_pair(*(loaded[hook].sae for hook in pair))
    return {hook: fitted(one.sae, adapter) for hook, one in loaded.items()}


def _between(
    wanted: Wanted,
    model: "LanguageModel",
    coders: "Mapping[HookPoint, SparseCoder]",
    prompts: "Iterable[Prompt]",
    pair: Pair,
) -> "Iterator[Between]":
    from circuitcli.attribution.subject import build
    from circuitcli.saes.coders import Coders
    from circuitcli.validation.between import between

    chosen = Coders.of(coders[hook] for hook in pair)
    for prompt in prompts:
        subject = build(model.adapter, chosen, [prompt], metric="kl")
        yield between(subject, *pair, wanted.request.settings.graph.batch_size)


def _record(wanted: Wanted, curve: "Curve", pair: Pair, *, n_tokens: int) -> InteractionRecord:
    from circuitcli.validation.interaction_sets import CAP
    from circuitcli.validation.scores import bounded

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
        "capped": bounded(curve.areas(curve.divergence, up_to=CAP), **draws),
    }
    lows = [point.low for point in points if point.low is not None]
    highs = [point.high for point in points if point.high is not None]
    return InteractionRecord(
        name=wanted.name,
        source=str(pair[0]),
        target=str(pair[1]),
        n_edges=curve.n_edges,
        kl=tuple(point.value for point in points),
        kl_low=tuple(lows) or None,
        kl_high=tuple(highs) or None,
        kl_circuit=None if curve.from_all is None else tuple(curve.from_all.mean(dim=1).tolist()),
        floor=float(curve.least.mean()),
        unit="nats",
        n_live=curve.n_live,
        n_possible=curve.n_possible,
        n_prompts=curve.divergence.shape[1],
        n_tokens=n_tokens,
        order=settings.interaction.order,
        method=settings.interaction.method,
        rule=settings.interaction.rule,
        path=f"reports/{wanted.name}.json",
        **{name: _told(area) for name, area in areas.items()},
    )


def _told(area: "Score") -> dict[str, float | None]:
    return {"value": area.value, "low": area.low, "high": area.high}
