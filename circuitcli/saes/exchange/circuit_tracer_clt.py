"""circuit-tracer's cross-layer transcoders: of each layer W_enc_<i>.safetensors and W_dec_<i>.safetensors.

The first holds W_enc_i (d_sae, d_model), b_enc_i, b_dec_i of what is written at the layer, and threshold_i of a
JumpReLU; the second W_dec_i (d_sae, n_layers - i, d_model), whose columns write the layer itself and those after it. A
layer is a coder of its own here. TopK and skips are in none of these files.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.layers import check_whole, writes_from
from circuitcli.saes.exchange.place import ACROSS, About, Place
from circuitcli.saes.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign

logger = logging.getLogger(__name__)

KIND = "cross_layer_transcoder"
ENCODER = re.compile(r"W_enc_([0-9]{1,9})\.safetensors")
_DECODER = re.compile(r"W_dec_([0-9]{1,9})\.safetensors")
_AGAIN = "copy the cross-layer transcoder again, with all of its files"


def places(
    directory: Path, names: frozenset[str], *, format_: str, config: Mapping[str, Any], config_path: Path | None
) -> list[Place]:
    """The layers of a directory with these files; of one file that is named alone its layer.

    Raises InputError where a file or a layer is missing, or where files tell different numbers of layers.
    """
    layers = sorted(int(found[1]) for name in names if (found := ENCODER.fullmatch(name)))
    is_whole = len(names) > 1
    if is_whole:
        with_decoder = sorted(int(found[1]) for name in names if (found := _DECODER.fullmatch(name)))
        for layer in sorted({*layers} ^ {*with_decoder}):
            lacking = f"W_{'dec' if layer in layers else 'enc'}_{layer}.safetensors"
            raise InputError(f"{directory} holds a cross-layer transcoder and lacks {lacking}", hint=_AGAIN)
    counts = {layer: layer + _decoder_shape(directory, layer)[1] for layer in layers}
    if is_whole:
        check_whole(directory, counts, hint=_AGAIN)
    made = []
    for layer, n_layers in counts.items():
        files = [directory / f"W_{part}_{layer}.safetensors" for part in ("enc", "dec")]
        files += [] if config_path is None else [config_path]
        hook, target, further = _ends(config, layer, n_layers)
        model = config.get("model_name")
        made.append(Place(format_, files[0], tuple(files), hook, target, model, transcodes=True, further=further))
    return made


def _decoder_shape(directory: Path, layer: int) -> tuple[int, ...]:
    stored = StoredTensors(directory / f"W_dec_{layer}.safetensors", hint=_AGAIN)
    shape = stored.shapes.get(f"W_dec_{layer}", ())
    if len(shape) != 3:
        raise InputError(f"{stored.path} has no W_dec_{layer} of three axes: features, layers, width", hint=_AGAIN)
    return shape


def _ends(
    config: Mapping[str, Any], layer: int, n_layers: int
) -> tuple[HookPoint | None, HookPoint | None, tuple[HookPoint, ...]]:
    """What a layer reads and writes; nothing where no config tells."""
    if not {"feature_input_hook", "feature_output_hook"} <= config.keys():
        return None, None, ()
    hook, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_input_hook']}")
    target, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_output_hook']}")
    return hook, target, writes_from(target, n_layers)[1:]


def read(place: Place, config: Mapping[str, Any]) -> "Foreign":
    """A layer, with the decoders that the place lists; no other is read. Raises InputError for bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    layer = int(ENCODER.fullmatch(place.files[0].name)[1])  # type: ignore[index]
    if config.get("activation") not in (None, "relu", "jumprelu", "jump_relu"):
        raise InputError(
            f"{place.path}: circuit-tracer has no cross-layer transcoder of the activation '{config['activation']}'",
            hint="the config may say relu or jumprelu",
        )
    assert place.hook is not None
    stored = StoredTensors(place.files[0], hint=_AGAIN)
    tensors = Tensors(place.files[0], {name: stored.read(name) for name in stored.shapes})
    encoder = tensors.take(f"W_enc_{layer}", shape=(None, None))
    d_sae, d_in = encoder.shape
    parameters = {"W_enc": encoder.T, "b_enc": tensors.take(f"b_enc_{layer}", shape=(d_sae,))}
    has_thresholds = f"threshold_{layer}" in tensors
    if has_thresholds:
        threshold = parameters["threshold"] = tensors.take(f"threshold_{layer}", shape=(d_sae,))
        if bool((threshold < 0).any()):
            raise InputError(f"{place.path} has negative thresholds, with which circuit-tracer gives negative codes")
    parameters |= _decoders(place, layer, tensors.take(f"b_dec_{layer}", shape=(None,)), d_sae)
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=len(parameters["b_dec"]),
        further=place.further,
    )
    sae = build("jumprelu" if has_thresholds else "relu", sae_config, parameters, path=tensors.path)
    return Foreign(sae, _about(place, config, dtype=tensors.dtype_of(f"W_enc_{layer}")))


def _about(place: Place, config: Mapping[str, Any], *, dtype: str) -> About:
    return About(
        model=place.model,
        hook=config.get("feature_input_hook"),
        target=config.get("feature_output_hook"),
        dtype=dtype,
        before_gain=str(config.get("feature_input_hook")).endswith("hook_normalized"),
        notes=(ACROSS,),
        training={name: config[name] for name in ("scan",) if config.get(name) is not None},
    )


def _decoders(place: Place, layer: int, bias: "Tensor", d_sae: int) -> "dict[str, Tensor]":
    """Decoders by our names. The bias is that of what is written at the layer itself."""
    from circuitcli.saes.exchange.tensors import decoders

    stored = StoredTensors(place.files[1], hint=_AGAIN)
    name, d_out = f"W_dec_{layer}", len(bias)
    wanted = (d_sae, len(place.uncut or place.writes), d_out)
    if stored.shapes[name] != wanted:
        raise InputError(f"{stored.path}: {name} has shape {stored.shapes[name]}, expected {wanted}", hint=_AGAIN)
    return decoders(
        ((stored.read(name, column=number), bias if number == 0 else None) for number in place.numbers), d_out=d_out
    )


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write the layers of a cross-layer transcoder. Raises InputError for what circuit-tracer does not load."""
    from circuitcli.saes import folding
    from circuitcli.saes.tensor_files import save_tensors

    _check_writable([item.sae for item in items])
    coders = {item.sae.hook.layer: folding.with_decoder_bias_rule(item.sae, subtracts=False) for item in items}
    directory.mkdir(parents=True, exist_ok=True)
    n_layers = max(hook.layer for coder in coders.values() for hook in coder.writes) + 1
    if sorted(coders) != list(range(n_layers)):
        logger.warning(
            "circuit-tracer loads a cross-layer transcoder only if it has all layers; this one has %s of %d",
            " ".join(map(str, sorted(coders))),
            n_layers,
        )
    biases = _biases(coders)
    made = []
    for layer, coder in coders.items():
        path = directory / f"W_enc_{layer}.safetensors"
        tensors = {
            f"W_enc_{layer}": coder.W_enc.T,
            f"b_enc_{layer}": coder.b_enc,
            f"b_dec_{layer}": biases.get(layer, coder.b_dec.new_zeros(coder.d_out)),
        }
        if coder.architecture == "jumprelu":
            # Codes are positive here; there a pre-activation above a negative threshold would be a negative one.
            tensors[f"threshold_{layer}"] = coder.state_dict()["threshold"].clamp_min(0)
        save_tensors(tensors, path)
        save_tensors({f"W_dec_{layer}": _columns(coder, n_layers)}, directory / f"W_dec_{layer}.safetensors")
        made.append(path)
    return made


def _columns(coder: "SparseCoder", n_layers: int) -> "Tensor":
    """All decoders in one tensor, with zeros for layers that are not written."""
    columns = coder.W_dec.new_zeros(coder.d_sae, n_layers - coder.hook.layer, coder.d_out)
    for hook in coder.writes:
        columns[:, hook.layer - coder.hook.layer] = coder.decoder(hook)
    return columns


def _biases(coders: "Mapping[int, SparseCoder]") -> "dict[int, Tensor]":
    """What all coders add to each written layer, whatever their codes. Raises InputError where no file can hold it."""
    found: dict[int, Tensor] = {}
    for coder in coders.values():
        for hook in coder.writes:
            bias = coder.decoder_bias(hook)
            found[hook.layer] = found[hook.layer] + bias if hook.layer in found else bias
    for layer in sorted(found.keys() - coders.keys()):
        if bool(found[layer].any()):
            raise InputError(
                f"circuit-tracer has no place for the bias of layer {layer}, in which no coder reads",
                hint="choose all layers of the cross-layer transcoder, or --to circuit",
            )
    return found


def _check_writable(coders: "Sequence[SparseCoder]") -> None:
    """Raise InputError for what its files or its loader do not take."""
    for coder in coders:
        fits = coder.architecture in ("relu", "jumprelu") and coder.config.normalisation == "none"
        if not fits or coder.config.skip or coder.d_in != coder.d_out:
            with_skip = " with a skip" if coder.config.skip else ""
            raise InputError(
                f"circuit-tracer cannot hold the {coder.architecture} cross-layer transcoder at {coder.hook}"
                f"{with_skip}, of {coder.d_in} inputs and {coder.d_out} outputs",
                hint="it holds ReLU and JumpReLU ones without a skip, of the model's width: --to circuit holds all",
            )
    kinds = {(sae.hook.site, sae.target.site, sae.architecture, sae.d_sae, sae.d_in) for sae in coders}
    sites = {hook.site for sae in coders for hook in sae.writes}
    at_own = all(sae.is_transcoder and sae.hook.layer <= sae.target.layer for sae in coders)
    if len(kinds) > 1 or len(sites) > 1 or not at_own or len({sae.hook.layer for sae in coders}) < len(coders):
        raise InputError(
            "circuit-tracer holds one cross-layer transcoder, all of whose layers are of one kind and width",
            hint="choose its coders with --sae, --layers and --sites",
        )
