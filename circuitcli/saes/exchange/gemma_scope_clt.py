"""Gemma Scope 2's cross-layer transcoders: of each layer params_layer_<i>.safetensors.

A file holds w_enc (d_in, d_sae), b_enc, threshold, w_dec (d_sae, n_layers, d_out), b_dec of what is written at the
layer and, of an affine one, affine_skip_connection (d_in, d_out) to it. Columns of w_dec before the layer are not used.
They read what the norm before the MLP gives, and write what the norm behind it adds to the residual stream.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.layers import check_whole, writes_from
from circuitcli.saes.exchange.place import Place
from circuitcli.saes.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder

LAYER = re.compile(r"params_layer_([0-9]{1,9})\.safetensors")
_AGAIN = "copy the cross-layer transcoder again, with all of its files"


def places(directory: Path, names: frozenset[str], *, format_: str, model: str, config: Path | None) -> list[Place]:
    """The layers of a directory with these files; of one file that is named alone its layer.

    Raises InputError where a layer is missing, or where files tell different numbers of layers.
    """
    layers = sorted(int(found[1]) for name in names if (found := LAYER.fullmatch(name)))
    counts = {layer: _decoder_shape(directory, layer)[1] for layer in layers}
    if len(names) > 1:
        check_whole(directory, counts, hint=_AGAIN)
    made = []
    for layer, n_layers in counts.items():
        path = directory / f"params_layer_{layer}.safetensors"
        files = (path,) if config is None else (path, config)
        target, *further = writes_from(HookPoint(layer, "mlp"), n_layers)
        hook = HookPoint(layer, "mlp_in")
        made.append(Place(format_, path, files, hook, target, model, transcodes=True, further=tuple(further)))
    return made


def _decoder_shape(directory: Path, layer: int) -> tuple[int, ...]:
    stored = StoredTensors(directory / f"params_layer_{layer}.safetensors", hint=_AGAIN)
    shape = stored.shapes.get("w_dec", ())
    if len(shape) != 3 or shape[1] <= layer:
        raise InputError(
            f"{stored.path}: w_dec has shape {shape}, expected features, more than {layer} layers, width", hint=_AGAIN
        )
    return shape


def read(place: Place) -> "tuple[SparseCoder, str]":
    """A layer, with the decoders that the place lists, and the number type of its weights; no other decoder is read."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Tensors, build, decoders

    stored = StoredTensors(place.files[0], hint=_AGAIN)
    tensors = Tensors(stored.path, {name: stored.read(name) for name in stored.shapes if name != "w_dec"})
    W_enc = tensors.take("w_enc", shape=(None, None))
    d_in, d_sae = W_enc.shape
    bias = tensors.take("b_dec", shape=(None,))
    d_out, skip = len(bias), _skip(tensors.content, d_in)
    if stored.shapes["w_dec"][::2] != (d_sae, d_out):
        raise InputError(
            f"{stored.path}: w_dec has shape {stored.shapes['w_dec']}, expected ({d_sae}, layers, {d_out})", hint=_AGAIN
        )
    assert place.hook is not None
    first = place.hook.layer
    found = ((stored.read("w_dec", column=first + n), bias if n == 0 else None) for n in place.numbers)
    parameters: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", shape=(d_sae,)),
        "threshold": tensors.take("threshold", shape=(d_sae,)),
        **decoders(found, skip=skip, d_out=d_out),
    }
    config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=d_out,
        skip=skip is not None,
        further=place.further,
    )
    return build("jumprelu", config, parameters, path=stored.path), tensors.dtype_of("w_enc")


def _skip(content: Mapping[str, Any], d_in: int) -> "Tensor | None":
    found: Tensor | None = content.get("affine_skip_connection")
    if found is not None and (found.ndim != 2 or len(found) != d_in):
        raise InputError(f"affine_skip_connection has shape {tuple(found.shape)}, expected ({d_in}, any)", hint=_AGAIN)
    return None if found is None else found.float().T
