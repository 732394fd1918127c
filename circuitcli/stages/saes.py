"""The SAEs that a stage works with: which they are, told without torch, and loading them."""

import logging
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.progress import note
from circuitcli.records import ActivationsRecord, SaeRecord
from circuitcli.saes.exchange import native
from circuitcli.saes.exchange.choosing import chosen, resolve
from circuitcli.saes.exchange.hooks import same_model
from circuitcli.saes.exchange.naming import texts_of
from circuitcli.saes.exchange.place import Place
from circuitcli.saes.folder import CONFIG, WEIGHTS
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaeSource:
    """Where an SAE is, and the digest of weights and configuration; ``is_own`` if it is one that the run trained."""

    place: Place
    digest: str
    is_own: bool


def sae_sources(request: Request, *, stage: str, layers: Iterable[int] = ()) -> dict[HookPoint, SaeSource]:
    """The SAEs that the stage works with, by hook point: those of ``--sae``, else those of the records; torch-free.

    layers: where SAEs of a whole release are wanted, beside those at the collected hook points. Raises InputError if
    there is none, or if ``--sae`` names none or two at one hook point.
    """
    if request.settings.sae_path is not None:
        collected = {HookPoint.parse(record.hook) for record in request.records.of(ActivationsRecord)}
        wanted = {HookPoint(layer, site) for layer in layers for site in SITES}
        places = resolve(texts_of(request.settings.sae_path), hooks=collected | wanted)
        return {hook: SaeSource(place, place.digest, is_own=False) for hook, place in places.items()}
    found = {}
    for record in request.records.of(SaeRecord):
        place = _own(request.run.path / record.path, HookPoint.parse(record.hook))
        found[HookPoint.parse(record.hook)] = SaeSource(place, record.digest, is_own=True)
    if not found:
        raise InputError(
            f"{stage} read no 'sae' record", hint="run `circuit train` before it, or name SAEs with --sae PATH"
        )
    return {hook: found[hook] for hook in sorted(found)}


def _own(directory: Path, hook: HookPoint) -> Place:
    """Where a run has an SAE that it trained; if that is gone, loading will say so."""
    there = frozenset(name for name in (WEIGHTS, CONFIG) if (directory / name).is_file())
    found = native.places(directory, there)
    return found[0] if found else Place(native.NAME, directory, (directory / WEIGHTS, directory / CONFIG), hook)


def graph_sources(
    sources: Mapping[HookPoint, SaeSource],
    *,
    layers: Collection[int] | None = None,
    sites: Collection[str] | None = None,
) -> dict[HookPoint, SaeSource]:
    """The coders of a circuit at these layers and sites, cut to what they write in these layers; see `choosing.chosen`.

    Raises InputError if none is left, or if a hook point is explained twice.
    """
    places = chosen({hook: source.place for hook, source in sources.items()}, layers=layers, sites=sites)
    if not places:
        at = "any" if layers is None else " ".join(map(str, sorted(layers)))
        raise InputError(
            f"no SAE at layers {at}, sites {' '.join(sorted(sites)) if sites else 'any'}",
            hint=f"there are SAEs at {' '.join(map(str, sorted(sources)))}",
        )
    return {hook: replace(sources[hook], place=place) for hook, place in places.items()}


def hook_of_pin(hook: HookPoint, sources: Mapping[HookPoint, SaeSource]) -> HookPoint:
    """Where the SAE is whose features are pinned: at the hook point that was named if there is one.

    A layer without a site means its residual stream or, where no SAE is there, the only hook point of the layer that
    has one, which is said: of SAEs that read what enters the block, `6:` is resid_pre.6.
    """
    near = [other for other in sources if other.layer == hook.layer and other.site != "embed"]
    if hook in sources or hook.site != "resid" or len(near) != 1:
        return hook
    note(f"the pins of layer {hook.layer} are features of {near[0]}, the only hook point there with an SAE")
    return near[0]


def load_saes(
    sources: Mapping[HookPoint, SaeSource],
    hooks: Iterable[HookPoint],
    *,
    model: str,
    adapter: "ModelAdapter | None",
    writes: Container[HookPoint] | None = None,
    takes_transcoders: bool = False,
) -> "dict[HookPoint, Foreign]":
    """The SAEs of these hook points, with a warning for those that were trained on another model than ``model``.

    adapter: of that model; needed for SAEs of a norm's output before its weight. writes: the hook points that are to be
    written, unless all are; decoders of others are not read. Raises InputError if weights or configuration changed
    since they were recorded, where they do not fit the model, or for a transcoder where none can be used.
    """
    loaded = {}
    for hook in hooks:
        source = sources[hook] if writes is None else _cut(sources[hook], writes)
        found = loaded[hook] = load_sae(source)
        if broken := [name for name, value in found.sae.named_parameters() if not bool(value.isfinite().all())]:
            raise InputError(
                f"{source.place.path} holds numbers that are not finite, in {' '.join(broken)}",
                hint="copy or train the SAE again; `circuit inspect` tells more",
            )
        if found.about.model is not None and not same_model(found.about.model, model):
            logger.warning("the SAE at %s was trained on %s, not on %s", hook, found.about.model, model)
        if found.sae.is_transcoder and not takes_transcoders:
            raise InputError(
                f"{source.place.path} holds a transcoder from {hook} to {found.sae.target}, not an autoencoder",
                hint="circuits are made of autoencoders: choose hook points with --sites",
            )
        if adapter is not None:
            _check_fits(found.sae, source.place, adapter)
        if found.about.before_gain:
            fold_gain(found.sae, adapter)
    return loaded


def _cut(source: SaeSource, writes: Container[HookPoint]) -> SaeSource:
    place = source.place.cut(writes)
    if place is None:
        raise InputError(
            f"the coder at {source.place.hook} in {source.place.path} writes none of the hook points of the circuit",
            hint="choose hook points with --layers and --sites",
        )
    return replace(source, place=place)


def _check_fits(coder: "SparseCoder", place: Place, adapter: "ModelAdapter") -> None:
    """Raise InputError, naming the file, for what writes another width than the model's, or layers that it lacks.

    What is read is compared with the activations at hand, by those who have them.
    """
    if coder.is_transcoder and coder.d_in == adapter.d_model:
        try:
            coder.check_width(adapter.d_model)
        except InputError as error:
            raise InputError(f"{place.path}: {error.message}", hint=error.hint) from None
    beyond = [hook for hook in coder.writes if hook.layer >= adapter.n_layers]
    if coder.is_transcoder and beyond:
        raise InputError(
            f"{place.path} writes {' '.join(map(str, beyond))}, and the model has {adapter.n_layers} layers",
            hint="use SAEs that were trained on this model",
        )


def load_sae(source: SaeSource) -> "Foreign":
    """One SAE. Raises InputError if it is missing or damaged, or not the one that the run recorded."""
    from circuitcli.saes.exchange import formats

    directory = source.place.path
    if source.is_own and not (directory / WEIGHTS).is_file():
        raise InputError(f"no SAE in {directory}", hint="run `circuit train` again")
    if source.is_own and not source.place.is_recorded_as(source.digest):
        raise InputError(
            f"weights or configuration in {directory} are not those that were recorded",
            hint="put the files back, or run `circuit train --force`",
        )
    return formats.read(source.place)


def fold_gain(sae: "SparseCoder", adapter: "ModelAdapter | None") -> None:
    """Let an SAE that was trained on a norm's output before its weight and bias read it after them, as models give it.

    Raises InputError if that cannot be folded into the weights.
    """
    from circuitcli.saes.exchange import folding

    if adapter is None:
        raise InputError(
            f"the SAE at {sae.hook} reads a norm before its weight, so the model is needed to use it",
            hint="let the model be loaded, as with --set train.loss_tokens=4096",
        )
    adapter.check(sae.hook)
    norm = adapter.module(sae.hook.layer, "attn_norm" if sae.hook.site == "attn_in" else "mlp_norm")
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gain is None:
        return
    gain = gain.detach().float().cpu() + adapter.layout.norm_offset
    if sae.config.normalisation != "none" or not bool((gain.abs() > 1e-6).all()):
        raise InputError(f"the SAE at {sae.hook} was trained before the norm's weight, which cannot be folded into it")
    folding.fold_affine_input(sae, gain, None if bias is None else bias.detach().float().cpu())
