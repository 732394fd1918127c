"""Writing SAELens's files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks, temporal
from circuitcli.saes.exchange.place import About
from circuitcli.saes.exchange.sae_lens_config import NORMALISATIONS

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# The first version that reads what `write` writes.
VERSION = "6.0.0"
_PURSUIT, _TEMPORAL = "matching_pursuit", "temporal"

_OF_VERSION_5 = ("relu", "gated", "topk", "jumprelu")
_WRITTEN = {
    "relu": "standard",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    _PURSUIT: _PURSUIT,
    _TEMPORAL: _TEMPORAL,
}
_WRITTEN_TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write each SAE into a directory of its own, named by TransformerLens's hook point, in the files of 6.x.

    Those of SAEs that 5.x has too are read by it as well.

    Raises InputError for an SAE that SAELens has no architecture for.
    """
    from circuitcli.saes import folding
    from circuitcli.saes.tensor_files import save_tensors

    made = []
    for sae, about, _ in items:
        if sae.is_transcoder:
            sae = folding.with_decoder_bias_rule(sae, subtracts=False)
        config = _written_config(sae, about)
        tensors = dict(sae.state_dict())
        if sae.architecture == _PURSUIT:
            tensors = _tied(sae)
        if sae.architecture == _TEMPORAL:
            tensors = temporal.tensors_of(sae)
        if sae.architecture == "gated":
            tensors["b_gate"] = tensors.pop("b_enc")
        folder = directory / config["metadata"]["hook_name"]
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        made.append(folder)
    return made


def _tied(sae: "SparseCoder") -> "dict[str, Tensor]":
    """The tensors of matching pursuit. Raises InputError if its encoder is not the decoder."""
    if not bool((sae.W_dec == sae.W_enc.T).all()) or bool(sae.b_enc.any()):
        raise InputError(f"SAELens ties encoder and decoder of matching pursuit, unlike the SAE at {sae.hook}")
    return {name: tensor for name, tensor in sae.state_dict().items() if name in ("W_dec", "b_dec")}


def _written_config(sae: "SparseCoder", about: About) -> dict[str, Any]:
    kind = (sae.architecture, sae.config.skip)
    architecture = _WRITTEN_TRANSCODERS.get(kind) if sae.is_transcoder else _WRITTEN.get(sae.architecture)
    if architecture is None or sae.config.further:
        kind_of_sae = "cross-layer transcoder" if sae.config.further else "transcoder" if sae.is_transcoder else "SAE"
        raise InputError(
            f"SAELens has no {sae.architecture} {kind_of_sae}, as at {sae.hook}", hint="choose another --to"
        )
    is_centred = sae.config.normalisation == "centre"
    written = {ours: theirs for theirs, ours in reversed(NORMALISATIONS.items())}
    metadata = {
        "model_name": about.model,
        "hook_name": hooks.to_transformer_lens(sae.hook, before_gain=about.before_gain),
        "context_size": about.context_length,
        "prepend_bos": about.bos,
        "dataset_path": about.dataset,
        "model_from_pretrained_kwargs": {"center_writing_weights": True} if is_centred else {},
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
    }
    config = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.config.subtract_decoder_bias,
        "normalize_activations": "none" if is_centred else written[sae.config.normalisation],
        "reshape_activations": "none",
        "metadata": metadata,
    }
    config |= temporal.config_of(sae) if sae.architecture == _TEMPORAL else sae.options
    if sae.architecture in ("topk", "abstopk"):
        config["rescale_acts_by_decoder_norm"] = False
    if sae.is_transcoder:
        config["d_out"] = sae.d_out
        metadata["hook_name_out"] = hooks.to_transformer_lens(sae.target)
    elif sae.architecture in _OF_VERSION_5:
        config |= _fields_of_version_5(sae, metadata)
    return config


def _fields_of_version_5(sae: "SparseCoder", metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What 5.x reads beside the fields that it shares with 6.x, which passes over them."""
    k = sae.options.get("k")
    fields = {
        **{name: metadata[name] for name in ("model_name", "hook_name", "context_size", "dataset_path")},
        "model_from_pretrained_kwargs": metadata["model_from_pretrained_kwargs"],
        "hook_layer": sae.hook.layer,
        "hook_head_index": None,
        "activation_fn_str": "relu" if k is None else "topk",
        "activation_fn_kwargs": {} if k is None else {"k": k},
        "finetuning_scaling_factor": False,
    }
    # It takes a missing field for true, and an empty one for false.
    return fields if metadata["prepend_bos"] is None else fields | {"prepend_bos": metadata["prepend_bos"]}
