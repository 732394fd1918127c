"""The layers of a cross-layer transcoder: which are there, and what each writes; needs no torch."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import Place

logger = logging.getLogger(__name__)

# More than any model has; files may tell any number.
MOST_LAYERS = 4096


def writes_from(target: HookPoint, n_layers: int) -> tuple[HookPoint, ...]:
    """What a layer writes: its own hook point and the same of all layers after it.

    Raises InputError for more layers than any model has.
    """
    if n_layers > MOST_LAYERS:
        raise InputError(f"no model has {n_layers} layers, as its files tell", hint="copy the SAE again")
    return tuple(HookPoint(layer, target.site) for layer in range(target.layer, n_layers))


def check_whole(directory: Path, counts: Mapping[int, int], *, hint: str) -> None:
    """Raise InputError unless all layers are there from the first that is.

    counts: for each layer how many layers its decoders tell that there are. Layers that are missing in front are told
    in a warning: what they write is part of the error.
    """
    n_layers, layers = max(counts.values()), sorted(counts)
    if n_layers > MOST_LAYERS:
        raise InputError(f"{directory}: no model has {n_layers} layers, as its files tell", hint=hint)
    for layer in layers:
        if counts[layer] != n_layers:
            raise InputError(
                f"{directory}: by the decoders of layer {layer} the cross-layer transcoder has {counts[layer]} layers, "
                f"by others {n_layers}",
                hint=hint,
            )
    missing = [layer for layer in range(layers[0], n_layers) if layer not in counts]
    if missing:
        raise InputError(
            f"{directory} holds a cross-layer transcoder of {n_layers} layers without layer "
            f"{' '.join(map(str, missing))}",
            hint=hint,
        )
    if layers[0] > 0:
        logger.warning(
            "the cross-layer transcoder in %s begins with layer %d: what layers before it write is not explained",
            directory,
            layers[0],
        )


def check_between(path: Path, places: Iterable[Place]) -> None:
    """Raise InputError if layers between others are missing from a cross-layer transcoder of one folder a layer.

    Such a layer is one that is written, and that none of the coders begins with.
    """
    found = [place for place in places if place.target is not None]
    begun = {place.writes[0] for place in found}
    written = sorted({hook for place in found for hook in place.further} - begun)
    missing = [hook for hook in written if begun and min(begun) < hook < max(begun)]
    if missing:
        raise InputError(
            f"{path} holds a cross-layer transcoder without layer {' '.join(str(hook.layer) for hook in missing)}: "
            f"{' '.join(map(str, missing))} is written, and the coder that begins there is missing",
            hint="copy or train it again, with all of its layers",
        )
