"""What the configs beside sparsify's weights tell of its folders: what each reads, and which it writes; torch-free.

In the words of clt-training, EleutherAI's fork of sparsify, the n-th target of a coder is the n-th hook point from its
own on, among those of the training. The training's config lists them; where it is not there they follow each other.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import COUNT, FACT, FLAG, INDEX, LIST, TEXT, checked
from circuitcli.saes.exchange.layers import writes_from
from circuitcli.saes.exchange.place import read_object

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"
TRAINING = ("lr", "optimizer", "batch_size", "grad_acc_steps", "auxk_alpha", "loss_fn", "expansion_factor", "seed")
_SWITCHES = ("normalize_io", "divide_cross_layer", "post_encoder_scale", "topk_coalesced", "per_source_tied")
_FIELDS = {
    "d_in": COUNT,
    "k": COUNT,
    # Zero where the expansion factor says it.
    "num_latents": INDEX,
    "expansion_factor": INDEX,
    "activation": TEXT,
    "signed": FLAG,
    "transcode": FLAG,
    "skip_connection": FLAG,
    # Of clt-training alone.
    "n_targets": INDEX,
    "coalesce_topk": TEXT,
    **dict.fromkeys((*_SWITCHES, "secondary_target_tied"), FLAG),
}
_RUN_FIELDS = {
    "model": TEXT,
    "dataset": TEXT,
    "ctx_len": COUNT,
    "hookpoints": LIST,
    "hookpoints_in": LIST,
    **dict.fromkeys(TRAINING, FACT),
}
_LAYER = re.compile(r"(?P<before>(?:\w+\.)*?(?:h|layers|blocks)\.)(?P<layer>[0-9]{1,9})(?P<after>\..+)?")
# Where the norm of this name is the one before the MLP, and reads the stream.
_NORM_BEFORE_MLP, _LLAMAS = ".post_attention_layernorm", re.compile("llama|smollm|mistral|qwen")
_AGAIN = "copy the cross-layer transcoder again, with the config.json above its folders"


def config_of(directory: Path) -> dict[str, Any]:
    """What a folder's config says of its coder."""
    return checked(read_object(directory / CONFIG), _FIELDS, directory / CONFIG)


def run_config_of(directory: Path) -> dict[str, Any]:
    """What the training was told, if it lies above a folder."""
    path = directory.parent / RUN_CONFIG
    return checked(read_object(path), _RUN_FIELDS, path) if path.is_file() else {}


def read_by(directory: Path, run: Mapping[str, Any]) -> HookPoint:
    """What a transcoder reads: the input of its module, or of the one that the training names for it."""
    name, model = directory.name, run.get("model")
    inputs, listed = run.get("hookpoints_in", []), run.get("hookpoints", [])
    if inputs and name not in listed:
        raise InputError(
            f"{directory.parent / RUN_CONFIG} names hookpoints_in, but none for {name}, which is not in hookpoints",
            hint=_AGAIN,
        )
    if not inputs or listed.index(name) >= len(inputs):
        return hooks.from_module(name, model=model, takes_input=True)
    read = str(inputs[listed.index(name)])
    found = _LAYER.fullmatch(read)
    if found is not None and found["after"] == _NORM_BEFORE_MLP and _LLAMAS.search((model or "").lower()):
        return HookPoint(int(found["layer"]), "resid_mid")
    return hooks.from_module(read, model=model, takes_input=True)


def written_folders(directory: Path, n_targets: int, run: Mapping[str, Any]) -> tuple[Path, ...]:
    """The folders of all layers that a coder of so many targets writes, its own first, whether they are there or not.

    Raises InputError for more layers than there are.
    """
    name, listed = directory.name, run.get("hookpoints", [])
    if name in listed:
        names = [str(other) for other in listed[listed.index(name) :][:n_targets]]
        if len(names) < n_targets:
            raise InputError(
                f"{directory / CONFIG}: 'n_targets' is {n_targets}, but the hookpoints of the training above it have "
                f"{len(names)} from {name} on",
                hint=_AGAIN,
            )
    else:
        # Of any site: what is asked for is how many layers there can be.
        first = HookPoint(_layer_of(directory), "mlp")
        names = [_renamed(name, after.layer) for after in writes_from(first, first.layer + n_targets)]
    return tuple(directory.parent / other for other in names)


def there(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """These folders up to the last layer of which there is a folder beside the first; others are told in a warning."""
    last = max(layer for layer, _ in _siblings(folders[0]))
    kept = tuple(folder for folder in folders if _layer_of(folder) <= last)
    if len(kept) < len(folders) and _layer_of(folders[0]) == last:
        logger.warning(
            "%s holds no layer after %d: what is written there is not explained, for its decoders are in these folders",
            folders[0].parent,
            last,
        )
    return kept


def n_before(directory: Path, run: Mapping[str, Any]) -> int:
    """How many layers before that of a folder write what it writes. Raises InputError if one is not there."""
    listed = run.get("hookpoints", [])
    if directory.name in listed:
        before = [directory.parent / str(name) for name in listed[: listed.index(directory.name)]]
        distances = list(range(len(before), 0, -1))
    else:
        layer = _layer_of(directory)
        before = [folder for number, folder in _siblings(directory) if number < layer]
        distances = [layer - _layer_of(folder) for folder in before]
    reach = (config_of(folder).get("n_targets", 0) for folder in before)
    return sum(distance < n_targets for distance, n_targets in zip(distances, reach, strict=True))


def _siblings(directory: Path) -> list[tuple[int, Path]]:
    """Layers and folders of coders whose names differ from this one's by the layer alone, and itself."""
    own = _parted(directory.name)
    made = []
    for path in directory.parent.iterdir():
        found = _LAYER.fullmatch(path.name)
        if found is None or found.group("before", "after") != own.group("before", "after"):
            continue
        if (path / CONFIG).is_file():
            made.append((int(found["layer"]), path))
    return made


def _layer_of(directory: Path) -> int:
    return int(_parted(directory.name)["layer"])


def _renamed(name: str, layer: int) -> str:
    found = _parted(name)
    return f"{found['before']}{layer}{found['after'] or ''}"


def _parted(name: str) -> re.Match[str]:
    found = _LAYER.fullmatch(name)
    if found is None:
        raise InputError(f"'{name}' is not a module of a layer, and a cross-layer transcoder has one", hint=_AGAIN)
    return found
