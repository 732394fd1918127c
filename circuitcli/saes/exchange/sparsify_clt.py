"""Transcoders of clt-training, EleutherAI's fork of sparsify, of one layer or across layers: of each layer a folder.

Read from its code (sparse_coder.py, runner.py, fused_encoder.py) at commit cf9821f. A layer keeps the k largest of
``relu(x' W.T + b)``, where x' is its input, by ``normalize_io`` times sqrt(d) / in_norm. To its n-th target it adds,
times post_enc_scales.n, what W_decs.n makes of them, with b_decs.n and what W_skips.n carries of x'. By
``per_source_tied`` W_dec serves all targets. By ``coalesce_topk`` "concat" the decoder of all sources is W_dec in the
folder of the target, whose b_dec and W_skip are added once. ``divide_cross_layer`` divides what other layers add to a
target by their number, and ``normalize_io`` multiplies the sum by the target's out_norm / sqrt(d).

All this is folded into weights. What makes codes of other layers', or outputs that are not linear in them, is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import field_of
from circuitcli.saes.exchange.layers import MOST_LAYERS
from circuitcli.saes.exchange.place import ACROSS, About, Place, scaled_note
from circuitcli.saes.exchange.sparsify_files import (
    CONFIG,
    WEIGHTS,
    config_of,
    n_before,
    run_config_of,
    there,
    written_folders,
)
from circuitcli.saes.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.exchange.tensors import Foreign

_AGAIN = "copy the cross-layer transcoder again, with its own config"
# In which all layers of a transcoder are the same.
_COMMON = ("coalesce_topk", "normalize_io", "divide_cross_layer", "skip_connection", "d_in")


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a transcoder of clt-training: sparsify knows no targets."""
    return bool(config.get("transcode")) and "n_targets" in config


def folders_of(directory: Path, config: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[Path, ...]:
    """The folders of the layers that the coder in one writes, its own first.

    Where a target's folder holds what is needed to write it, those after the last that is there are left out.
    """
    found = written_folders(directory, config["n_targets"], run) if config["n_targets"] else (directory,)
    return there(found) if len(found) > 1 and needs_targets(config) else found


def read(place: Place, config: Mapping[str, Any], about: About) -> "Foreign":
    """A layer, with the decoders that the place lists; no other decoder is read.

    Raises InputError for options and tensors that are not known here, and for shapes that do not fit each other.
    """
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, build

    own = _Layer(place.path, config)
    if own.n_targets > 1 and not hooks.names_module(place.path.name):
        raise InputError(
            f"{place.path} is a layer of a cross-layer transcoder, but the name of its folder does not tell which",
            hint="name the folder as in the transcoder, for example layers.5.mlp",
        )
    encoder = own.take("encoder.weight", config.get("num_latents") or None, config.get("d_in"))
    d_sae, d_in = encoder.shape
    scale = own.input_scale(d_in)
    parameters = {
        "W_enc": _times(encoder, scale).T,
        "b_enc": own.take("encoder.bias", d_sae),
    }
    for at, number in enumerate(place.numbers):
        for name, tensor in _writing(own, number, d_sae=d_sae, d_in=d_in).items():
            parameters[f"{name}_{at}" if at else name] = tensor
    assert place.hook is not None
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=d_in,
        skip=own.skips,
        further=place.further,
    )
    k = field_of(config, "k", place.files[1])
    coder = build("topk", sae_config, parameters, path=own.stored.path, k=k)
    notes = (*([ACROSS] if own.n_targets else []), *([] if scale == 1 else [scaled_note(scale)]))
    return Foreign(coder, replace(about, dtype=own.dtype).noting(*notes))


def _writing(own: "_Layer", number: int, *, d_sae: int, d_in: int) -> "dict[str, Tensor]":
    """Decoder, bias and skip to a target, as they act on our codes and on the layer's input."""
    own.check_linear(number, d_sae)
    target = own.target(number)
    factor = target.output_scale(d_in)
    if number and own.config.get("divide_cross_layer") and not own.is_concat:
        factor /= max(1, n_before(target.path, run_config_of(target.path)))
    holder = target if own.is_concat else own
    decoder = holder.take(own.name("W_dec", number), d_sae, d_in)
    scale = own.post_scale(number, d_sae)
    made = {"W_dec": _times(decoder, factor if scale is None else (scale.double() * factor).float()[:, None])}
    # Of concat's targets each adds its own bias and skip once.
    elsewhere = number > 0 and own.is_concat
    bias = decoder.new_zeros(d_in) if elsewhere else own.take(own.name("b_dec", number), d_in)
    made["b_dec"] = _times(bias, factor)
    if own.skips and elsewhere:
        # One number for all.
        made["W_skip"] = decoder.new_zeros(()).expand(d_in, d_in)
    elif own.skips:
        skip = own.take(own.name("W_skip", number), d_in, d_in)
        made["W_skip"] = _times(skip, factor * own.input_scale(d_in))
    return made


def _times(tensor: "Tensor", factor: "float | Tensor") -> "Tensor":
    """A tensor that nobody else has, multiplied in place: it may be most of the memory."""
    return tensor if isinstance(factor, float) and factor == 1 else tensor.mul_(factor)


def needs_targets(config: Mapping[str, Any]) -> bool:
    """Whether what a layer writes depends on the folders of the layers that it writes."""
    return any((config.get("coalesce_topk") == "concat", config.get("normalize_io"), config.get("divide_cross_layer")))


class _Layer:
    """The folder of one layer. Raises InputError for options and tensors that are not known here."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        _check_options(path, config)
        self.path, self.config = path, config
        self.n_targets: int = config["n_targets"]
        self.is_concat = config.get("coalesce_topk", "none") == "concat"
        self.skips = bool(config.get("skip_connection"))
        self.stored = StoredTensors(path / WEIGHTS, hint=_AGAIN)
        self._check_names()

    @property
    def dtype(self) -> str:
        """Number type of the weights."""
        return str(self.stored.read("encoder.bias").dtype).removeprefix("torch.")

    def name(self, part: str, number: int) -> str:
        """The tensor of a part for a target; some have one for all of them."""
        of_all = {"W_dec": self.is_concat or self.config.get("per_source_tied")}
        of_all |= {"b_dec": self.is_concat, "W_skip": self.is_concat}
        return part if not self.n_targets or of_all.get(part) else f"{part}s.{number}"

    def take(self, name: str, *shape: int | None) -> "Tensor":
        """A tensor in float32. Raises InputError if its shape is another."""
        from circuitcli.saes.exchange.tensors import Tensors

        return Tensors(self.stored.path, {name: self.stored.read(name)}).take(name, shape=shape)

    def target(self, number: int) -> "_Layer":
        """The layer that is written, where it says something of that; else this one itself."""
        if number == 0 or not needs_targets(self.config):
            return self
        path = written_folders(self.path, self.n_targets, run_config_of(self.path))[number]
        if not (path / CONFIG).is_file():
            raise InputError(f"{self.path} writes the layer of {path}, which is not there", hint=_AGAIN)
        config = config_of(path)
        for option in _COMMON:
            if (config.get(option) or None) != (self.config.get(option) or None):
                raise InputError(
                    f"{path} has '{option}' {config.get(option)}, {self.path}, which writes it, "
                    f"{self.config.get(option)}",
                    hint=_AGAIN,
                )
        return _Layer(path, {"n_targets": 0, **config})

    def input_scale(self, d_in: int) -> float:
        """By what the input is multiplied before anything else."""
        return sqrt(d_in) / self._norm("in_norm") if self.config.get("normalize_io") else 1.0

    def output_scale(self, d_in: int) -> float:
        """By what the sum of all that write this layer is multiplied."""
        return self._norm("out_norm") / sqrt(d_in) if self.config.get("normalize_io") else 1.0

    def _norm(self, name: str) -> float:
        norm = float(self.take(name, 1))
        if not 0 < norm < inf:
            raise InputError(f"{self.stored.path}: {name} is {norm}, not a length above zero", hint=_AGAIN)
        return norm

    def post_scale(self, number: int, d_sae: int) -> "Tensor | None":
        """By what codes are multiplied on their way to a target; None for nothing.

        Of a file without them its own target's are ones and others' zeros, as clt-training takes it.
        """
        import torch

        if not self.config.get("post_encoder_scale"):
            return None
        name = self.name("post_enc_scale", number)
        if name not in self.stored.shapes:
            return None if number == 0 else torch.zeros(d_sae)
        return self.take(name, d_sae)

    def check_linear(self, number: int, d_sae: int) -> None:
        """Raise InputError where a feature that fires writes a constant to a target, besides its activation."""
        name = self.name("post_enc", number)
        if name in self.stored.shapes and bool(self.take(name, d_sae).any()):
            raise InputError(
                f"{self.stored.path}: {name} is not zero: what a feature writes is then not its activation times its "
                "decoder, and circuit knows no such transcoder",
                hint="those trained with --train_post_encoder=False are read",
            )

    def _check_names(self) -> None:
        """Raise InputError for tensors that are missing, and for others, which might change what is given."""
        numbers = range(max(1, self.n_targets))
        parts = ["W_dec", "b_dec", *(["W_skip"] if self.skips else [])]
        wanted = {"encoder.weight", "encoder.bias", *(self.name(part, number) for part in parts for number in numbers)}
        wanted |= {"in_norm", "out_norm"} if self.config.get("normalize_io") else set()
        after = ["post_enc", *(["post_enc_scale"] if self.config.get("post_encoder_scale") else [])]
        # The first of a list is there by its own name too.
        known = wanted | {*parts} | {self.name(part, number) for part in after for number in numbers}
        others = self.stored.shapes.keys() - known if self.n_targets else set()
        for names, what in ((wanted - self.stored.shapes.keys(), "has no"), (others, "has, unlike known ones,")):
            if names:
                raise InputError(
                    f"{self.stored.path} {what} {' '.join(sorted(names)[:4])}; of a cross-layer transcoder of "
                    f"{self.n_targets} layers with these options {' '.join(sorted(wanted)[:4])} ... are read",
                    hint=_AGAIN,
                )


def _check_options(path: Path, config: Mapping[str, Any]) -> None:
    if config["n_targets"] > MOST_LAYERS:
        raise InputError(f"{path}: no model has {config['n_targets']} layers, as its files tell", hint=_AGAIN)
    coalesced = config.get("coalesce_topk", "none")
    unknown = [name for name in ("signed", "secondary_target_tied") if config.get(name)]
    if coalesced != "none" and config.get("topk_coalesced"):
        unknown.append("topk_coalesced")
    if coalesced not in ("none", "concat"):
        unknown.append(f"coalesce_topk {coalesced}")
    if config.get("activation", "topk") != "topk":
        unknown.append(f"the activation {config['activation']}")
    if unknown:
        raise InputError(
            f"{path} is a transcoder of clt-training with {' and '.join(unknown)}, which circuit does not know",
            hint="those whose layers have a TopK of their own are read; convert others to circuit-tracer's files",
        )
