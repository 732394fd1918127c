"""Llama Scope (arXiv:2410.20526): hyperparams.json and checkpoints/final.safetensors.

JumpReLU with one threshold. Activations were multiplied by the root of the width over their mean norm, and codes live
in that space; the threshold is given in the space of the raw activations. Where ``sparsity_include_decoder_norm`` is
set, the authors compare pre-activations times the norm of the decoder row with it; SAELens does not, so the two
differ unless those norms are 1.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import FLAG, NUMBER, POSITIVE, TEXT, checked, field_of, objects
from circuitcli.saes.exchange.place import About, Place, read_object, scaled_note

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "llama_scope"
CONFIG, WEIGHTS = "hyperparams.json", Path("checkpoints") / "final.safetensors"
_CONTEXT_LENGTH, _DATASET = 1024, "cerebras/SlimPajama-627B"
_FIELDS = {
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
    """The SAE of a directory with these files."""
    if CONFIG not in names or not (directory / WEIGHTS).is_file():
        return []
    config = _config(directory / CONFIG)
    hook, _ = hooks.from_transformer_lens(field_of(config, "hook_point_in", directory / CONFIG))
    target, _ = hooks.from_transformer_lens(config.get("hook_point_out") or config["hook_point_in"])
    files = (directory / WEIGHTS, directory / CONFIG)
    return [Place(NAME, directory, files, hook, None if target == hook else target, _model(directory))]


def _config(path: Path) -> dict[str, Any]:
    return checked(read_object(path), _FIELDS, path)


def _model(directory: Path) -> str | None:
    return "meta-llama/Llama-3.1-8B" if re.search(r"Llama3_1-8B", str(directory)) else None


def read(place: Place) -> "Foreign":
    """The SAE or transcoder, for raw activations. Raises InputError for what is not known, and for bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange import folding
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    config, path = _config(place.path / CONFIG), place.path / CONFIG
    if config.get("act_fn", "jumprelu") != "jumprelu":
        raise InputError(f"{path}: the activation '{config['act_fn']}' is not known", hint="it is jumprelu")
    tensors = Tensors.safetensors(place.path / WEIGHTS)
    encoder = tensors.take("encoder.weight", shape=(None, None))
    d_sae, d_in = encoder.shape
    W_dec = tensors.take("decoder.weight", shape=(None, d_sae)).T
    scale_in, scale_out = _scale(config, "in", d_in, path), _scale(config, "out", W_dec.shape[1], path)
    threshold = field_of(config, "jump_relu_threshold", path) * scale_in
    norms = W_dec.norm(dim=1).clamp_min(1e-8)  # (d_sae,)
    parameters = {
        "W_enc": encoder.T,
        "b_enc": tensors.take("encoder.bias", shape=(d_sae,)),
        "W_dec": W_dec,
        "b_dec": tensors.take("decoder.bias", shape=(W_dec.shape[1],)),
        "threshold": threshold / norms if config.get("sparsity_include_decoder_norm") else 0 * norms + threshold,
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


def _scale(config: dict[str, Any], end: str, width: int, path: Path) -> float:
    """The factor of the activations at one end."""
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        raise InputError(
            f"{path}: norm_activation '{config['norm_activation']}' is not known", hint="it is dataset-wise"
        )
    norms = field_of(config, "dataset_average_activation_norm", path)
    return float(width**0.5 / field_of(norms, end, path))
