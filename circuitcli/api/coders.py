"""Loading sparse coders, from wherever they are."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from circuitcli.api.arguments import ByHook, Hook, Path, as_hooks, wrong_type
from circuitcli.api.models import as_model
from circuitcli.attribution.subject import fitted
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import SITES, HookPoint, hook_points, parse_layers, parse_slice
from circuitcli.models.loading import LanguageModel
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.cutting import cut
from circuitcli.saes.exchange.choosing import resolve, within
from circuitcli.saes.files import content_digest
from circuitcli.saes.sources import SaeSource, load_saes

# What functions that work with coders take: what `load_coders` gives, a list of coders, or one.
SomeCoders = Mapping[HookPoint, SparseCoder] | Iterable[SparseCoder] | SparseCoder
Source = Path | SparseCoder
_HINT = "give a path to a run, an SAE or a directory of SAEs, the name of a release, or a list of these"


def load_coders(
    source: Source | Iterable[Source],
    *,
    model: LanguageModel | None = None,
    hooks: Hook | Iterable[Hook] | None = None,
    layers: str | int | None = None,
) -> ByHook[SparseCoder]:
    """The coders that a source names, by the hook point that each reads.

        coders = circuit.load_coders("runs/builtin-tiny")                    # those that a run trained
        coders = circuit.load_coders("runs/gpt2", hooks=["resid.8", "resid.9"])
        coders = circuit.load_coders("gpt2-small-res-jb", hooks="resid.8")   # of a release, which is downloaded
        coders = circuit.load_coders(["saes/resid.3", "sae_lens:other/sae"])
        coders = circuit.load_coders("circuit_tracer:clt", layers="3:6")     # of a large one what a circuit needs
        coders["resid.8"].W_dec                                              # (d_sae, d_model)

    hooks: only those that read these hook points; of a whole release they must be named. layers: only those that read
    these layers, cut to what they write there; the decoders of other layers are not read. model: what they are to be
    used with, which is then checked: widths and hook points, and whether they were trained on another model.

    Raises InputError for what is neither a path nor a release, for damaged files, and for two coders at one hook point;
    ToolError for what cannot be downloaded.
    """
    inside = None if layers is None else _layers(str(layers), model)
    wanted = None if hooks is None else frozenset(as_hooks(hooks))
    of_releases = wanted or hook_points(inside or (), SITES)
    several = _sources(source)
    places = resolve([os.fspath(one) for one in several if not isinstance(one, SparseCoder)], hooks=of_releases)
    sources = {
        hook: SaeSource(place, place.digest, is_own=False)
        for hook, place in (places if inside is None else within(places, inside)).items()
        if wanted is None or hook in wanted
    }
    adapter = None if model is None else as_model(model).adapter
    loaded = load_saes(sources, sources, model=None if model is None else model.name, adapter=adapter)
    given = [one for one in several if isinstance(one, SparseCoder) and (wanted is None or one.hook in wanted)]
    given = given if inside is None else _cut_to(inside, given)
    found = ByHook(by_hook([*(one.sae for one in loaded.values()), *given]))
    if not found:
        there = sorted({*places, *(one.hook for one in several if isinstance(one, SparseCoder))})
        raise InputError(
            "no coder is left" if there else "no coder is named",
            hint=f"there are coders at {' '.join(map(str, there))}" if there else _HINT,
        )
    if model is not None:
        for coder in found.values():
            check_fits(coder, model)
    return found


def _sources(source: Source | Iterable[Source]) -> list[Source]:
    is_one = isinstance(source, str | os.PathLike | SparseCoder) or not isinstance(source, Iterable)
    several: list[Any] = [source] if is_one else [*source]  # type: ignore[misc]
    for one in several:
        if not isinstance(one, str | os.PathLike | SparseCoder):
            raise wrong_type("source", one, "the name of coders", hint=_HINT)
    return several


# More than any model has.
_MOST_LAYERS = 4096


def _layers(text: str, model: LanguageModel | None) -> Sequence[int]:
    """The layers of a slice. Raises SettingsError for one that is counted from the last layer of an unknown model."""
    if model is not None:
        return parse_layers(text, n_layers=as_model(model).adapter.n_layers)
    named = parse_slice(text)
    if min(named.start or 0, named.stop or 0) < 0:
        raise SettingsError(f"the layers '{text}' are counted from the model's last one", hint="give model= too")
    return range(_MOST_LAYERS)[named]


def _cut_to(layers: Collection[int], coders: Iterable[SparseCoder]) -> list[SparseCoder]:
    """The coders that read and write in these layers, cut to what they write there."""
    inside = ((coder, [hook for hook in coder.writes if hook.layer in layers]) for coder in coders)
    return [cut(coder, writes) for coder, writes in inside if writes and coder.hook.layer in layers]


def check_fits(coder: SparseCoder, model: LanguageModel) -> None:
    """Raise InputError or SettingsError unless the model has what the coder reads and writes, in its width."""
    for hook in read_by(coder):
        model.adapter.check(hook)
    if isinstance(coder, Crosscoder):
        if coder.d_model != model.adapter.d_model:
            raise InputError(
                f"the crosscoder of {' '.join(coder.hooks)} is for width {coder.d_model}, the model has "
                f"{model.adapter.d_model}",
                hint="use a crosscoder that was trained on this model",
            )
        return
    coder.check_width(model.adapter.d_model)


def read_by(coder: SparseCoder) -> tuple[HookPoint, ...]:
    """All hook points that a coder reads or writes."""
    return coder.hook_points if isinstance(coder, Crosscoder) else tuple(dict.fromkeys((coder.hook, *coder.writes)))


def by_hook(coders: SomeCoders) -> dict[HookPoint, SparseCoder]:
    """Coders by the hook point that each reads, in model order.

    Raises InputError if two read one hook point, SettingsError for what is no coder.
    """
    found: dict[HookPoint, SparseCoder] = {}
    for coder in _listed(coders):
        if not isinstance(coder, SparseCoder):
            raise wrong_type("coders", coder, "a sparse coder", hint="load_coders() and train() give coders")
        if coder.hook in found:
            raise InputError(f"two coders read {coder.hook}", hint="choose one of them")
        found[coder.hook] = coder
    return {hook: found[hook] for hook in sorted(found)}


def _listed(coders: SomeCoders) -> Iterable[object]:
    if isinstance(coders, SparseCoder):
        return [coders]
    if isinstance(coders, Mapping):
        return coders.values()
    return coders if isinstance(coders, Iterable) and not isinstance(coders, str) else [coders]


def spliced(coders: SomeCoders, model: LanguageModel, *, layers: str | None, sites: Sequence[str] | None) -> Coders:
    """The coders of a circuit at these layers and sites, cut to what they write there, on the model's device.

    Raises InputError if none is left, if they do not fit the model, or if a hook point is explained twice.
    """
    n_layers = model.adapter.n_layers
    wanted = range(n_layers) if layers is None else parse_layers(layers, n_layers=n_layers)
    found = by_hook(coders)
    chosen = [
        coder
        for coder in _cut_to(wanted, found.values())
        if sites is None or {coder.hook.site, coder.writes[0].site} & {*sites}
    ]
    if not chosen:
        there = " ".join(map(str, found))
        raise InputError(
            f"no coder at layers {layers or ':'}, sites {' '.join(sites) if sites else 'any'}" if found else "no coder",
            hint=f"there are coders at {there}" if found else "load_coders() and train() give coders",
        )
    return Coders.of(fitted(coder, model.adapter) for coder in chosen)


def digests(coders: Mapping[HookPoint, SparseCoder]) -> dict[HookPoint, str]:
    """What tells coders from others: the digest of the files that they are from, else of what they hold."""
    return {hook: coder.digest or content_digest(coder) for hook, coder in coders.items()}
