"""Gemma Scope: params.npz of the first (Gemma 2), params.safetensors and config.json of the second (Gemma 3).

JumpReLU SAEs and transcoders that do not subtract the decoder bias. What the first ones read is told by the names of
repository and folders alone; its transcoders read the norm's output before its weight. The embedding SAEs were trained
on rows of the embedding matrix, which the model multiplies by the root of its width.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import gemma_scope_clt as clt
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import FACT, TEXT, checked
from circuitcli.saes.exchange.place import ACROSS, About, Place, read_object

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "gemma_scope"
FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
_CONTEXT_LENGTH, _DATASET = 1024, "monology/pile-uncopyrighted"
_FIELDS = {
    **dict.fromkeys(("architecture", "type", "hf_hook_point_in", "hf_hook_point_out", "model_name"), TEXT),
    "l0": FACT,
}
# Of the config beside the layers of a cross-layer transcoder, if there is one.
_OF_LAYERS = {"type": TEXT, "model_name": TEXT, "l0": FACT}

_REPOSITORY = re.compile(r"gemma-scope-(?P<size>2b|9b|27b)-(?P<kind>pt|it)-(?P<part>res|mlp|att|transcoders)")
_SITES = {"res": "resid", "mlp": "mlp", "transcoders": "mlp_in"}
# Folders of the second, for SAEs whose config.json was not copied.
_FOLDERS: dict[str, tuple[str, str | None]] = {
    "resid_post": ("", None),
    "mlp_out": ("post_feedforward_layernorm", None),
    "transcoder": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files, or the layers of one across layers.

    Raises InputError for those of attention heads, and for crosscoders.
    """
    if FIRST in names:
        return [_first(directory)]
    if SECOND in names:
        return [_second(directory, has_config=CONFIG in names)]
    if any(map(clt.LAYER.fullmatch, names)):
        return _across_layers(directory, names)
    return []


def files_of_layers(path: str, layers: Collection[int]) -> list[str]:
    """Of the folder of a cross-layer transcoder in a repository the files of these layers; none for any other path.

    Each can be fetched and read without the others.
    """
    parts = path.strip("/").split("/")
    is_folder = "clt" in parts[:-1] and "." not in parts[-1]
    return [f"{path.strip('/')}/params_layer_{layer}.safetensors" for layer in sorted(layers)] if is_folder else []


def _across_layers(directory: Path, names: frozenset[str]) -> list[Place]:
    path = directory / CONFIG
    config = checked(read_object(path), _OF_LAYERS, path) if path.is_file() else {}
    if "crosscoder" in str(config.get("type", "")) or any("crosscoder" in part for part in directory.parts[-3:]):
        raise InputError(f"{directory} holds a crosscoder, which reads many layers; circuit does not know its files")
    model = _model(str(config.get("model_name") or _repository(directory) or "gemma-3"))
    return clt.places(directory, names, format_=NAME, model=model, config=path if config else None)


def _first(directory: Path) -> Place:
    found = _REPOSITORY.search(str(directory))
    layer = re.search(r"layer_([0-9]{1,9})", str(directory))
    is_embedding = "embedding" in directory.parts
    model = hook = target = None
    if found is not None:
        if found["part"] == "att":
            raise InputError(f"{directory} holds an SAE of attention heads (hook_z), which circuit does not know")
        model = f"google/gemma-2-{found['size']}" + ("-it" if found["kind"] == "it" else "")
    if is_embedding:
        hook = HookPoint(0, "embed")
    elif found is not None and layer is not None:
        hook = HookPoint(int(layer[1]), _SITES[found["part"]])
        target = HookPoint(int(layer[1]), "mlp") if found["part"] == "transcoders" else None
    return Place(NAME, directory, (directory / FIRST,), hook, target, model, transcodes=_says_transcoder(directory))


def _says_transcoder(directory: Path) -> bool:
    return any("transcoder" in part for part in directory.parts[-4:])


def _second(directory: Path, *, has_config: bool) -> Place:
    config = _config(directory / CONFIG) if has_config else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise InputError(
            f"{directory}: the architecture '{config['architecture']}' is not known", hint="it is jump_relu"
        )
    if str(config.get("type", "")).startswith(("crosscoder", "clt")) or "clt" in directory.parts:
        raise InputError(
            f"{directory} holds one that writes to many layers, in a file that circuit does not know",
            hint="those of a cross-layer transcoder are params_layer_0.safetensors, params_layer_1.safetensors, ...",
        )
    entry, leave = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if entry is None:
        entry, leave = _guessed(directory)
    model = _model(str(config.get("model_name") or _repository(directory) or "gemma-3"))
    files = tuple(directory / name for name in ((SECOND, CONFIG) if has_config else (SECOND,)))
    if entry is None:
        return Place(NAME, directory, files, None, None, model, transcodes=_says_transcoder(directory))
    hook = hooks.from_module(entry, model=model)
    target = None if leave in (None, entry) else hooks.from_module(leave, model=model)
    return Place(NAME, directory, files, hook, target, model)


def _config(path: Path) -> dict[str, Any]:
    return checked(read_object(path), _FIELDS, path)


def _guessed(directory: Path) -> tuple[str | None, str | None]:
    """The modules that folders are named for."""
    layer = re.search(r"layer_([0-9]{1,9})", directory.name)
    kind = next((name for name in _FOLDERS if any(part.startswith(name) for part in directory.parts[-2:-1])), None)
    if layer is None or kind is None:
        return None, None
    paths = [None if part is None else f"model.layers.{layer[1]}.{part}".rstrip(".") for part in _FOLDERS[kind]]
    return paths[0], paths[1]


def _repository(directory: Path) -> str | None:
    found = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", str(directory))
    return None if found is None else f"gemma-3-{found[1]}"


def _model(name: str) -> str:
    """The name on the hub; the smallest pretrained one has no suffix there."""
    name = name.replace("-v3", "-3")
    name = name if "/" in name else f"google/{name}"
    return name.removesuffix("-pt") if "270m" in name else name


def read(place: Place) -> "Foreign":
    """The SAE or transcoder. Raises InputError for bad files."""
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

    if clt.LAYER.fullmatch(place.files[0].name):
        coder, dtype = clt.read(place)
        return Foreign(coder, _about_second(place, dtype))
    is_first = place.files[0].name == FIRST
    tensors = Tensors.npz(place.files[0]) if is_first else Tensors.safetensors(place.files[0])
    sae = _built(place, tensors)
    config = {} if is_first or len(place.files) == 1 else _config(place.files[1])
    found = re.search(r"average_l0_([0-9]{1,9})", str(place.path))
    l0 = config.get("l0") or (int(found[1]) if found else None)
    before_gain = is_first and place.target is not None
    about = About(
        model=place.model,
        hook=config.get("hf_hook_point_in") or ("ln2.hook_normalized" if before_gain else None),
        target=config.get("hf_hook_point_out"),
        bos=True,
        context_length=_CONTEXT_LENGTH,
        dtype=tensors.dtype_of("W_enc", "w_enc"),
        dataset=_DATASET,
        before_gain=before_gain,
        notes=_unscaled(sae) if place.hook == HookPoint(0, "embed") else (),
        training={} if l0 is None else {"l0": l0},
    )
    return Foreign(sae, about)


def _about_second(place: Place, dtype: str) -> About:
    """What is known of a layer of a cross-layer transcoder."""
    config = checked(read_object(place.files[1]), _OF_LAYERS, place.files[1]) if len(place.files) > 1 else {}
    return About(
        model=place.model,
        bos=True,
        context_length=_CONTEXT_LENGTH,
        dtype=dtype,
        dataset=_DATASET,
        notes=(ACROSS,),
        training={} if config.get("l0") is None else {"l0": config["l0"]},
    )


def _built(place: Place, tensors: "Tensors") -> "SparseCoder":
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import build

    W_enc = tensors.take("W_enc", "w_enc", shape=(None, None))
    d_in, d_sae = W_enc.shape
    W_dec = tensors.take("W_dec", "w_dec", shape=(d_sae, None))
    skips = "affine_skip_connection" in tensors
    if place.target is None and (W_dec.shape[1] != d_in or skips):
        raise InputError(f"{tensors.path} holds a transcoder", hint="say both ends, for example @mlp_in.5:mlp.5")
    parameters: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", shape=(d_sae,)),
        "W_dec": W_dec,
        "b_dec": tensors.take("b_dec", shape=(W_dec.shape[1],)),
        "threshold": tensors.take("threshold", shape=(d_sae,)),
    }
    if skips:
        parameters["W_skip"] = tensors.take("affine_skip_connection", shape=(d_in, W_dec.shape[1])).T
    assert place.hook is not None
    config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=None if place.target is None else W_dec.shape[1],
        skip=skips,
    )
    return build("jumprelu", config, parameters, path=tensors.path)


def _unscaled(sae: "SparseCoder") -> tuple[str, ...]:
    """Let an SAE of embedding rows read what the model makes of them."""
    from circuitcli.saes import folding

    folding.scale_input(sae, sae.d_in**-0.5)
    return ("trained on rows of the embedding; the model multiplies them by the root of the width, which is folded in",)
