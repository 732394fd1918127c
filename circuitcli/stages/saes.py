"""The SAEs that a stage works with: those of ``--sae``, else those of the run; told without torch."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from circuitcli.errors import InputError
from circuitcli.hookpoints import SITES, HookPoint, NodeId
from circuitcli.progress import note
from circuitcli.records import ActivationsRecord, SaeRecord
from circuitcli.saes.exchange import native
from circuitcli.saes.exchange.choosing import resolve
from circuitcli.saes.exchange.naming import texts_of
from circuitcli.saes.exchange.place import Place
from circuitcli.saes.folder import CONFIG, WEIGHTS
from circuitcli.saes.sources import SaeSource, fold_gain, graph_sources, load_sae, load_saes
from circuitcli.stages.request import Request

__all__ = [
    "SaeSource",
    "at_neuronpedia",
    "check_indices",
    "fold_gain",
    "graph_sources",
    "hook_of_pin",
    "load_sae",
    "load_saes",
    "recorded_widths",
    "sae_sources",
]


def sae_sources(
    request: Request, *, stage: str, layers: Iterable[int] = (), within: Collection[int] | None = None
) -> dict[HookPoint, SaeSource]:
    """The SAEs that the stage works with, by hook point: those of ``--sae``, else those of the records; torch-free.

    layers: where SAEs of a whole release are wanted, beside those at the collected hook points. within: where a graph
    is, if that is known; files of cross-layer transcoders elsewhere are not read, not even for their digests. Raises
    InputError if there is none, or if ``--sae`` names none or two at one hook point.
    """
    if request.settings.sae_path is not None:
        collected = {HookPoint.parse(record.hook) for record in request.records.of(ActivationsRecord)}
        wanted = {HookPoint(layer, site) for layer in layers for site in SITES}
        places = resolve(texts_of(request.settings.sae_path), hooks=collected | wanted)
        return {
            hook: SaeSource(place, place.digest, is_own=False)
            for hook, place in places.items()
            if within is None or hook.layer in within or not place.further
        }
    found = {}
    for record in request.records.of(SaeRecord):
        place = _own(request.run.path / record.path, HookPoint.parse(record.hook))
        found[HookPoint.parse(record.hook)] = SaeSource(place, record.digest, is_own=True)
    if not found:
        raise InputError(
            f"{stage} read no 'sae' record", hint="run `circuit train` before it, or name SAEs with --sae PATH"
        )
    return {hook: found[hook] for hook in sorted(found)}


def recorded_widths(request: Request) -> dict[HookPoint, int]:
    """How many features the run's own coders have; empty where others take their place."""
    if request.settings.sae_path is not None:
        return {}
    return {HookPoint.parse(record.hook): record.d_sae for record in request.records.of(SaeRecord)}


def check_indices(request: Request, nodes: Iterable[NodeId]) -> None:
    """Raise InputError for a feature that a coder of the run has not, by its record: no weights are read."""
    widths = recorded_widths(request)
    for node in nodes:
        width = widths.get(node.hook)
        if node.index is not None and width is not None and node.index >= width:
            raise InputError(
                f"{node.hook} has no feature {node.index}: its coder has {width}", hint=f"features are 0 to {width - 1}"
            )


def at_neuronpedia(sources: Mapping[HookPoint, SaeSource]) -> dict[str, str]:
    """What Neuronpedia calls the coders that it has, by name of what they read."""
    return {str(hook): name for hook, source in sources.items() if (name := source.place.neuronpedia) is not None}


def _own(directory: Path, hook: HookPoint) -> Place:
    """Where a run has an SAE that it trained; if that is gone, loading will say so."""
    there = frozenset(name for name in (WEIGHTS, CONFIG) if (directory / name).is_file())
    found = native.places(directory, there)
    return found[0] if found else Place(native.NAME, directory, (directory / WEIGHTS, directory / CONFIG), hook)


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
