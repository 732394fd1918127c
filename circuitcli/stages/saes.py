"""The SAEs that a stage works with: which they are, told without torch, and loading them."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.progress import note
from circuitcli.records import ActivationsRecord, SaeRecord
from circuitcli.saes.exchange import native
from circuitcli.saes.exchange.hooks import same_model
from circuitcli.saes.exchange.naming import by_hook, named
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
        places = by_hook(named(request.settings.sae_path, hooks=collected | wanted))
        return {hook: SaeSource(place, place.digest, is_own=False) for hook, place in places.items()}
    found = {}
    for record in request.records.of(SaeRecord):
        hook, directory = HookPoint.parse(record.hook), request.run.path / record.path
        place = Place(native.NAME, directory, (directory / WEIGHTS, directory / CONFIG), hook)
        found[hook] = SaeSource(place, record.digest, is_own=True)
    if not found:
        raise InputError(
            f"{stage} read no 'sae' record", hint="run `circuit train` before it, or name SAEs with --sae PATH"
        )
    return {hook: found[hook] for hook in sorted(found)}


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
    takes_transcoders: bool = False,
) -> "dict[HookPoint, Foreign]":
    """The SAEs of these hook points, with a warning for those that were trained on another model than ``model``.

    adapter: of that model; needed for SAEs of a norm's output before its weight. Raises InputError if weights
    or configuration changed since they were recorded, or for a transcoder where none can be used.
    """
    loaded = {}
    for hook in hooks:
        found = loaded[hook] = load_sae(sources[hook])
        if broken := [name for name, value in found.sae.named_parameters() if not bool(value.isfinite().all())]:
            raise InputError(
                f"{sources[hook].place.path} holds numbers that are not finite, in {' '.join(broken)}",
                hint="copy or train the SAE again; `circuit inspect` tells more",
            )
        if found.about.model is not None and not same_model(found.about.model, model):
            logger.warning("the SAE at %s was trained on %s, not on %s", hook, found.about.model, model)
        if found.sae.is_transcoder and not takes_transcoders:
            raise InputError(
                f"{sources[hook].place.path} holds a transcoder from {hook} to {found.sae.target}, not an autoencoder",
                hint="circuits are made of autoencoders: choose hook points with --sites",
            )
        if found.about.before_gain:
            fold_gain(found.sae, adapter)
    return loaded


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
