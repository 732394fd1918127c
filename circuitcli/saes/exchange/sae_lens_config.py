"""What SAELens's cfg.json says, of any version, in today's words and without levels; needs no torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import temporal
from circuitcli.saes.exchange.fields import (
    ANY,
    COUNT,
    FACT,
    FLAG,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    checked,
    either,
    objects,
)
from circuitcli.saes.exchange.place import read_object

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
NORMALISATIONS = {
    "none": "none",
    "layer_norm": "layer-norm",
    "constant_norm_rescale": "rms-norm",
    # Folded into the weights when training ends; before that the factor lies in a file of its own.
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
    # Of temporal SAEs alone, whose config has the factor.
    "constant_scalar_rescale": "none",
}
TRAINING = ("l1_coefficient", "lr", "training_tokens", "total_training_tokens", "training_architecture", "l0")
_FIELDS = {
    **dict.fromkeys(("architecture", "hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out"), TEXT),
    **dict.fromkeys(("model_name", "dataset_path", "activation_fn", "reshape_activations"), TEXT),
    **dict.fromkeys(("sae_lens_version", "sae_lens_training_version"), TEXT),
    **dict.fromkeys(("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "prepend_bos"), FLAG),
    **dict.fromkeys(("finetuning_scaling_factor", "stop_on_duplicate_support"), FLAG),
    **dict.fromkeys(("d_in", "d_sae", "context_size", "max_iterations"), COUNT),
    **dict.fromkeys(TRAINING, FACT),
    **temporal.FIELDS,
    # A BatchTopK, whose k is a mean, may have a fraction.
    "k": POSITIVE,
    "hook_head_index": ANY,
    "normalize_activations": either(TEXT, FLAG),
    "activation_fn_kwargs": objects({"k": COUNT}),
    "model_from_pretrained_kwargs": objects({"center_writing_weights": FLAG}),
    "residual_threshold": NUMBER,
}
# Names of models whose norms are LayerNorms: TransformerLens centred what these write, unless told not to.
_CENTRED_FROM, _CENTRED_UNTIL = (3, 0, 0), (3, 19, 2)
_LAYER_NORM_MODELS = ("gpt2", "gpt-neo", "pythia", "opt-", "attn-only", "gelu-", "solu-")


def config_of(path: Path) -> dict[str, Any]:
    """cfg.json in today's words and without levels."""
    content = read_object(path)
    levels = (content, checked(content, {"metadata": OBJECT}, path).get("metadata", {}))
    flat = {_RENAMED.get(name, name): value for level in levels for name, value in level.items()}
    config = checked(flat, _FIELDS, path)
    config["is_oldest"] = "hook_point" in content
    config.setdefault("architecture", "standard")
    kwargs = config.get("activation_fn_kwargs", {})
    if config.get("activation_fn", "relu") == "topk":
        config |= {"architecture": "topk", "k": kwargs.get("k")}
    elif config.get("activation_fn", "relu") != "relu":
        raise InputError(f"{path}: the activation function '{config['activation_fn']}' is not known")
    normalisation = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if normalisation is True else normalisation
    return config


def is_centred(config: Mapping[str, Any], hook: HookPoint) -> bool:
    """Whether the activations had their mean over the width removed, as TransformerLens does unless told not to.

    SAELens loaded models in that way while it wrote the oldest files and up to 3.19.1, and without it ever since
    (decoderesearch/SAELens, pull request 279).
    """
    if hook.site in ("attn_in", "mlp_in"):
        return False
    asked = config.get("model_from_pretrained_kwargs", {}).get("center_writing_weights")
    if asked is not None:
        return bool(asked)
    if not config["is_oldest"] and not _CENTRED_FROM <= _version(config) < _CENTRED_UNTIL:
        return False
    return any(part in str(config.get("model_name")).lower() for part in _LAYER_NORM_MODELS)


def _version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of SAELens, with which the SAE was trained; zeros where nothing tells."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})", config.get("sae_lens_training_version", ""))
    return tuple(map(int, found.groups())) if found else (0, 0, 0)
