"""``circuit inspect``: what an SAE is and expects, how healthy it is, and how it fits real activations."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.progress import track
from circuitcli.records import InspectionRecord, Record, ReleaseRecord
from circuitcli.saes.exchange import catalogue
from circuitcli.saes.exchange.hooks import same_model
from circuitcli.saes.exchange.naming import named, texts_of
from circuitcli.saes.exchange.place import Place
from circuitcli.stages.fitting import RECORDED, elsewhere, number, other_bos
from circuitcli.stages.inspect_bench import Bench
from circuitcli.stages.inspect_layers import held_together, outlines
from circuitcli.stages.measuring import finite
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, fold_gain, load_sae, sae_sources

if TYPE_CHECKING:
    from circuitcli.evaluation.fit import Fit
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.place import About
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "inspect"
# What is told of the quality on real activations.
_QUALITY = ("n_tokens", RECORDED, "l0", "silent", "cosine", "relative_bias", "l2_ratio", "mse")


def listing(text: str) -> list[Record]:
    """What a release of the catalogue holds, if the text is the name of a whole one; nothing is downloaded."""
    release = catalogue.releases().get(text)
    if release is None or len(release.entries) == 1:
        return []
    if not release.entries:
        raise InputError(
            f"{text} is a release whose contents are not in the catalogue",
            hint=f"see https://huggingface.co/{release.repo} and name one as {text}/PATH",
        )
    common = {"name": text, "repository": release.repo, "format": release.format, "model": release.changes.model}
    return [
        ReleaseRecord(**common, id=entry.id, hook=None if entry.hook is None else str(entry.hook), path=entry.path)
        for entry in release.entries
    ]


def run(request: Request, *, is_chosen: bool) -> list[Record]:
    """One record for each SAE: those of ``sae_path``, else the run's own. Of cross-layer transcoders that are named,
    with several layers, what their files' headers tell and, for a run or a model that ``is_chosen``, what all explain.

    Real activations come from the run's cache, else from the model on some text; unless run or model ``is_chosen`` by
    the user only for SAEs that say that they are of this model. Without them only the weights are looked at. Raises
    InputError for SAEs that cannot be read.
    """
    path = request.settings.sae_path
    made: dict[Place, InspectionRecord] = {}
    if path is None:
        sources = list(sae_sources(request, stage=NAME).values())
    else:
        places = [place for text in texts_of(path) for place in named(text)]
        made = outlines(places)
        left = [place for place in places if place not in made]
        sources = [SaeSource(place, place.digest, is_own=False) for place in left]
    bench = Bench(request, is_chosen)
    looked_at = track(sources, "inspect", unit="SAEs") if sources else ()
    return [*held_together(made, bench), *(_inspected(source, bench) for source in looked_at)]


def _inspected(source: SaeSource, bench: Bench) -> InspectionRecord:
    from circuitcli.evaluation.health import problems, weight_facts

    found = load_sae(source)
    sae, about, frequency = found
    wrong = _of_model(about, bench)
    origin, fit = _fitted(found, bench, wrong)
    radius = None if fit is None else fit.radius
    weights = weight_facts(sae, radius=radius)
    dead = number(about, "dead") if frequency is None else float((frequency < 1e-8).double().mean())
    wrong += problems(sae, weights, fit, dead=dead, recorded_l0=number(about, "l0"))
    if fit is not None and fit.is_bad and (told := other_bos(about, bench.bos, is_cached=bench.is_cached)):
        wrong.append(told)
    return InspectionRecord(
        **_what_it_is(source, sae, about),
        weights=finite(weights),
        activations=None if fit is None else finite(_quality(fit, origin)),
        dead_in_training=dead,
        problems=tuple(wrong),
    )


def _of_model(about: "About", bench: Bench) -> list[str]:
    model = bench.request.settings.model.name
    if about.model is None or same_model(about.model, model) or not bench.is_chosen:
        return []
    return [f"it was trained on {about.model}, and is looked at with {model}"]


def _fitted(found: "Foreign", bench: Bench, wrong: list[str]) -> "tuple[str, Fit | None]":
    """How it fits real activations, if there are some of its width."""
    from circuitcli.evaluation.fit import fit

    sae, about, _ = found
    # What one of several that write a hook point misses, the others may explain.
    is_alone = not sae.config.further and not about.writes_with_others
    activations = bench.activations(sae, wrong) if is_alone and bench.is_for(about) else None
    if activations is None:
        return "", None
    origin, (rows, lengths, _) = activations
    for hook, width in {sae.hook: sae.d_in, sae.target: sae.d_out}.items():
        if rows[hook].shape[1] != width:
            wrong.append(f"it is for width {width} at {hook}, where the model has {rows[hook].shape[1]}")
            return "", None
    if about.before_gain:
        fold_gain(sae, bench.model.adapter)
    others = {str(hook): found for hook, found in rows.items() if hook not in (sae.hook, sae.target)}
    others |= elsewhere(bench.request, (sae.hook, sae.target), n_tokens=len(rows[sae.hook]))
    target = rows[sae.target] if sae.is_transcoder else None
    recorded = number(about, RECORDED)
    return origin, fit(sae, rows[sae.hook], target=target, elsewhere=others, lengths=lengths, recorded=recorded)


def _what_it_is(source: SaeSource, sae: "SparseCoder", about: "About") -> dict[str, Any]:
    config = sae.config
    return {
        "hook": str(sae.hook),
        "target": str(sae.target) if sae.is_transcoder else None,
        "writes": [str(hook) for hook in sae.writes] if config.further else None,
        "architecture": sae.architecture,
        **sae.options,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "d_out": sae.d_out if sae.is_transcoder else None,
        "format": source.place.format,
        "path": str(source.place.path),
        "digest": source.digest,
        "normalisation": config.normalisation,
        "subtract_decoder_bias": config.subtract_decoder_bias,
        "skip": config.skip or None,
        "source_hook": about.hook,
        "source_target": about.target,
        "before_gain": about.before_gain or None,
        **{name: getattr(about, name) for name in ("model", "bos", "context_length", "dtype", "dataset")},
        "notes": about.notes,
        "training": finite(_numbers(about.training)),
    }


def _numbers(training: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the training that are one word or number each."""
    return {name: value for name, value in training.items() if isinstance(value, str | int | float)}


def _quality(fit: "Fit", origin: str) -> dict[str, Any]:
    made = asdict(fit.quality)
    return {"of": origin, **{name: made[name] for name in _QUALITY}, "better": dict(fit.better)}
