"""Temporal SAEs: the files that were published with them, and what SAELens's files of them have beyond others.

A directory layer_<i>/... holds conf.yaml and latest_ckpt.safetensors: D (d_sae, d_in), b (d_in,), E (d_in, d_sae) where
the encoder is not D's transpose, and for each attention layer k_ctx, q_target, v_ctx and c_proj. SAELens calls the
first three W_dec, b_dec and W_enc. Both divide the encoder's product by 4 d_in, which here is part of W_enc.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.fields import COUNT, FLAG, POSITIVE, TEXT, checked, field_of
from circuitcli.saes.exchange.place import About, Place, read_yaml, scaled_note

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "temporal"
CONFIG, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"
# Of SAELens's config: what inputs are multiplied by.
FACTOR = "activation_normalization_factor"
NOTE = "codes depend on the tokens before, BOS left out; on cached activations also those left out that are not stored"
# What SAELens's configs have of these SAEs, and theirs too.
FIELDS = {
    "n_heads": COUNT,
    "n_attn_layers": COUNT,
    "bottleneck_factor": COUNT,
    "sae_diff_type": TEXT,
    "kval_topk": COUNT,
    "tied_weights": FLAG,
    "apply_b_dec_to_input": FLAG,
    "scaling_factor": POSITIVE,
    FACTOR: POSITIVE,
}
_LAYER = re.compile(r"layer_([0-9]{1,9})")
# Their names of the parts of an attention layer, and ours.
_PARTS = {"k_ctx": "key", "q_target": "query", "v_ctx": "value", "c_proj": "out"}
_ATTENTION = "attn_layers."


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files; its layer is in the path."""
    if not {CONFIG, WEIGHTS} <= names:
        return []
    found = [_LAYER.fullmatch(part) for part in directory.parts]
    layer = next((int(match[1]) for match in reversed(found) if match), None)
    hook = None if layer is None else HookPoint(layer, "resid")
    return [Place(NAME, directory, (directory / WEIGHTS, directory / CONFIG), hook)]


def read(place: Place) -> "Foreign":
    """The SAE, for raw activations. Raises InputError for bad files."""
    from circuitcli.saes import folding
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    path = place.path / CONFIG
    config = _config(path)
    tensors = Tensors.safetensors(place.path / WEIGHTS)
    W_dec = tensors.take("D", shape=(None, None))
    tensors.content |= {"W_dec": W_dec, "b_dec": tensors.take("b", shape=(W_dec.shape[1],))}
    if not config["tied_weights"]:
        tensors.content["W_enc"] = tensors.take("E", shape=tuple(W_dec.T.shape))
    complete(tensors, config)
    chosen = options(config, path)
    own = {name: tensors.content[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    parameters = own | attention(tensors, n_layers=chosen["n_attention_layers"])
    assert place.hook is not None
    sae_config = SaeConfig(place.hook, d_in=W_dec.shape[1], d_sae=W_dec.shape[0])
    sae = build(NAME, sae_config, parameters, path=tensors.path, **chosen)
    about = About(model=place.model, dtype=tensors.dtype_of("D"), notes=(NOTE,))
    factor = config.get("scaling_factor") or place.changes.scale or 1
    if factor != 1:
        folding.scale_input(sae, factor)
        about = about.noting(scaled_note(factor))
    return Foreign(sae, about)


def _config(path: Path) -> dict[str, Any]:
    """The part about the SAE, which has SAELens's names."""
    found = read_yaml(path).get("sae")
    if not isinstance(found, dict):
        raise InputError(f"{path} has no 'sae' part", hint="copy the SAE again")
    return {"tied_weights": True, "apply_b_dec_to_input": True, **checked(found, FIELDS, path)}


def options(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What our SAE takes beside its parameters. Raises InputError for what is missing or not known."""
    kind = config.get("sae_diff_type", "topk")
    if kind not in ("topk", "relu"):
        raise InputError(f"{path}: sae_diff_type '{kind}' is not known", hint="topk and relu are")
    is_topk = kind == "topk" and config.get("kval_topk") is not None
    return {
        "k": field_of(config, "kval_topk", path) if is_topk else None,
        "n_heads": field_of(config, "n_heads", path),
        "n_attention_layers": field_of(config, "n_attn_layers", path),
        "bottleneck_factor": field_of(config, "bottleneck_factor", path),
    }


def complete(tensors: "Tensors", config: Mapping[str, Any]) -> None:
    """Put our encoder among tensors of SAELens's names; a decoder bias that is not used becomes zero."""
    W_dec = tensors.take("W_dec", shape=(None, None))
    is_tied = config.get("tied_weights", True)
    encoder = W_dec.T if is_tied else tensors.take("W_enc", shape=tuple(W_dec.T.shape))
    tensors.content |= {"W_enc": encoder / _shrinkage(W_dec.shape[1]), "b_enc": W_dec.new_zeros(len(W_dec))}
    if is_tied and not config.get("apply_b_dec_to_input", True):
        tensors.content["b_dec"] = W_dec.new_zeros(W_dec.shape[1])


def _shrinkage(d_in: int) -> int:
    """What the encoder's product is divided by."""
    return 4 * d_in


def attention(tensors: "Tensors", *, n_layers: int) -> "dict[str, Tensor]":
    """The parameters of the attention layers by our names. Raises InputError if there are fewer or more."""
    d_sae = tensors.take("W_dec", shape=(None, None)).shape[0]
    shapes: dict[str, tuple[int | None, ...]] = {"weight": (None, d_sae), "bias": (None,)}
    found = {
        f"attention.{layer}.{ours}.{kind}": tensors.take(f"{_ATTENTION}{layer}.{name}.{kind}", shape=shape)
        for layer in range(n_layers)
        for name, ours in _PARTS.items()
        for kind, shape in shapes.items()
    }
    if len(found) != (n_tensors := sum(name.startswith(_ATTENTION) for name in tensors.content)):
        raise InputError(
            f"{tensors.path} has {n_tensors} tensors of attention layers, {n_layers} layers have {len(found)}",
            hint="copy the SAE again, with its own config",
        )
    return found


def tensors_of(sae: "SparseCoder") -> "dict[str, Tensor]":
    """What SAELens's file holds. Raises InputError for an encoder with a bias."""
    if bool(sae.b_enc.any()):
        raise InputError(f"SAELens's temporal SAEs have no bias in the encoder, unlike the one at {sae.hook}")
    state = dict(sae.state_dict())
    del state["b_enc"]
    state["W_enc"] = state["W_enc"] * _shrinkage(sae.d_in)
    theirs = {ours: name for name, ours in _PARTS.items()}
    for name in [name for name in state if name.startswith("attention.")]:
        _, layer, part, kind = name.split(".")
        state[f"{_ATTENTION}{layer}.{theirs[part]}.{kind}"] = state.pop(name)
    return state


def config_of(sae: "SparseCoder") -> dict[str, Any]:
    """What SAELens's config says of it."""
    k = sae.options["k"]
    return {
        "n_heads": sae.options["n_heads"],
        "n_attn_layers": sae.options["n_attention_layers"],
        "bottleneck_factor": sae.options["bottleneck_factor"],
        "sae_diff_type": "relu" if k is None else "topk",
        "kval_topk": k,
        "tied_weights": False,
        FACTOR: 1.0,
    }
