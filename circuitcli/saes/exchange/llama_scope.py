"""Llama Scope (arXiv:2410.20526): hyperparams.json and checkpoints/final.safetensors.

JumpReLU with one threshold. Activations were multiplied by the root of the width over their mean norm, and codes live
in that space; the threshold is given in the space of the raw activations. Where ``sparsity_include_decoder_norm`` is
set, the authors compare pre-activations times the norm of the decoder row with it; SAELens does not, so the two
differ unless those norms are 1.

Its successors of the same library, OpenMOSS's, are folders of config.json and sae_weights.safetensors with a threshold
for each feature in the space of the codes. Those of R1 do not tell the factor of the activations; the catalogue does.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import FLAG, NUMBER, POSITIVE, TEXT, checked, field_of, objects
from circuitcli.saes.exchange.place import About, Place, read_object, scaled_note

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "llama_scope"
CONFIG, WEIGHTS = "hyperparams.json", Path("checkpoints") / "final.safetensors"
CONFIG_OF_FOLDER, WEIGHTS_OF_FOLDER = "config.json", "sae_weights.safetensors"
_CONTEXT_LENGTH, _DATASET = 1024, "cerebras/SlimPajama-627B"
_FIELDS = {
    "sae_type": TEXT,
    "hook_point_in": TEXT,
    "hook_point_out": TEXT,
    "act_fn": TEXT,
    "jump_relu_threshold": NUMBER,
    "sparsity_include_decoder_norm": FLAG,
    "apply_decoder_bias_to_pre_encoder": FLAG,
    "norm_activation": TEXT,
    "dataset_average_activation_norm": objects({"in": POSITIVE, "out": POSITIVE}),
}


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files. Raises InputError for others of OpenMOSS's library."""
    if CONFIG in names and (directory / WEIGHTS).is_file():
        files = (directory / WEIGHTS, directory / CONFIG)
    elif CONFIG_OF_FOLDER in names and _is_of_library(directory / CONFIG_OF_FOLDER):
        files = (directory / WEIGHTS_OF_FOLDER, directory / CONFIG_OF_FOLDER)
    else:
        return []
    config = _config(files[1])
    if (kind := config.get("sae_type", "sae")) != "sae" or not files[0].is_file():
        lacks = f"holds a {kind}" if kind != "sae" else f"has no {files[0].name}"
        raise InputError(
            f"{directory}, in the format of OpenMOSS's library, {lacks}",
            hint="its SAEs are read from safetensors; for others write SAELens's files with its to_saelens",
        )
    hook, _ = hooks.from_transformer_lens(field_of(config, "hook_point_in", files[1]))
    target, _ = hooks.from_transformer_lens(config.get("hook_point_out") or config["hook_point_in"])
    return [Place(NAME, directory, files, hook, None if target == hook else target, _model(directory))]


def _is_of_library(path: Path) -> bool:
    """Whether a config.json, of which there are many kinds, is of OpenMOSS's library."""
    try:
        content = read_object(path)
    except InputError:
        return False
    return "hook_point_in" in content or "sae_type" in content


def _config(path: Path) -> dict[str, Any]:
    return checked(read_object(path), _FIELDS, path)


def _model(directory: Path) -> str | None:
    return "meta-llama/Llama-3.1-8B" if re.search(r"Llama3_1-8B", str(directory)) else None


def read(place: Place) -> "Foreign":
    """The SAE or transcoder, for raw activations. Raises InputError for what is not known, and for bad files."""
    from circuitcli.saes import folding
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    weights, path = place.files
    config = _config(path)
    if config.get("act_fn", "jumprelu") != "jumprelu":
        raise InputError(f"{path}: the activation '{config['act_fn']}' is not known", hint="it is jumprelu")
    tensors = Tensors.safetensors(weights)
    encoder = tensors.take("encoder.weight", shape=(None, None))
    d_sae, d_in = encoder.shape
    W_dec = tensors.take("decoder.weight", shape=(None, d_sae)).T
    scale_in, scale_out = (
        place.changes.scale or _scale(config, end, width, path) for end, width in (("in", d_in), ("out", len(W_dec.T)))
    )
    norms = W_dec.norm(dim=1).clamp_min(1e-8)  # (d_sae,)
    threshold = _threshold(tensors, config, path, scale=scale_in, like=norms)
    parameters = {
        "W_enc": encoder.T,
        "b_enc": tensors.take("encoder.bias", shape=(d_sae,)),
        "W_dec": W_dec,
        "b_dec": tensors.take("decoder.bias", shape=(W_dec.shape[1],)),
        "threshold": threshold / norms if config.get("sparsity_include_decoder_norm") else threshold,
    }
    assert place.hook is not None
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=bool(config.get("apply_decoder_bias_to_pre_encoder")) and place.target is None,
        target=place.target,
        d_out=None if place.target is None else W_dec.shape[1],
    )
    sae = build("jumprelu", sae_config, parameters, path=tensors.path)
    folding.scale_input(sae, scale_in, output=scale_out)
    about = About(
        model=place.model,
        hook=config["hook_point_in"],
        target=config.get("hook_point_out") if place.target is not None else None,
        bos=True,
        context_length=_CONTEXT_LENGTH,
        dtype=tensors.dtype_of("encoder.weight"),
        dataset=_DATASET,
        before_gain=hooks.from_transformer_lens(config["hook_point_in"]).before_gain,
        notes=(scaled_note(scale_in),),
    )
    return Foreign(sae, about)


def _threshold(tensors: "Tensors", config: dict[str, Any], path: Path, *, scale: float, like: "Tensor") -> "Tensor":
    """What a pre-activation must be over, for each feature, in the space of the codes."""
    if path.name == CONFIG_OF_FOLDER:
        return tensors.take("log_jumprelu_threshold", shape=(len(like),)).exp()
    return 0 * like + field_of(config, "jump_relu_threshold", path) * scale


def _scale(config: dict[str, Any], end: str, width: int, path: Path) -> float:
    """The factor of the activations at one end."""
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        raise InputError(
            f"{path}: norm_activation '{config['norm_activation']}' is not known", hint="it is dataset-wise"
        )
    if path.name == CONFIG_OF_FOLDER and "dataset_average_activation_norm" not in config:
        raise InputError(
            f"{path} does not say the mean norm of the activations, by which the inputs were divided",
            hint='add it: "dataset_average_activation_norm": {"in": NUMBER, "out": NUMBER}',
        )
    norms = field_of(config, "dataset_average_activation_norm", path)
    return float(width**0.5 / field_of(norms, end, path))
