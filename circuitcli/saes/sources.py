"""Coders by where they are on disk: which of them make a circuit, and loading them for a model."""

import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.choosing import chosen
from circuitcli.saes.exchange.hooks import same_model
from circuitcli.saes.exchange.place import Place
from circuitcli.saes.folder import WEIGHTS

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


def load_saes(
    sources: Mapping[HookPoint, SaeSource],
    hooks: Iterable[HookPoint],
    *,
    model: str | None,
    adapter: "ModelAdapter | None",
    writes: Container[HookPoint] | None = None,
    load_adapter: "Callable[[], ModelAdapter] | None" = None,
) -> "dict[HookPoint, Foreign]":
    """The SAEs of these hook points, with a warning for those that were trained on another model than ``model``, if
    one is named.

    adapter: of that model; needed for SAEs of a norm's output before its weight, for which alone ``load_adapter`` loads
    it where it is not at hand. writes: the hook points that are to be
    written, unless all are; decoders of others are not read. Raises InputError if weights or configuration changed
    since they were recorded, or where they do not fit the model.
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
        if found.about.model and model and not same_model(found.about.model, model):
            logger.warning("the SAE at %s was trained on %s, not on %s", hook, found.about.model, model)
        if adapter is not None:
            _check_fits(found.sae, source.place, adapter)
        if found.about.before_gain:
            adapter = adapter if load_adapter is None else load_adapter()
            fold_gain(found.sae, adapter)
        found.sae.origin, found.sae.digest = source.place.path, source.digest
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
    from circuitcli.saes import folding

    if adapter is None:
        raise InputError(
            f"the SAE at {sae.hook} reads a norm before its weight, so the model is needed to use it",
            hint="load the model too: --set train.loss_tokens=4096, or in Python load_coders(..., model=model)",
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
