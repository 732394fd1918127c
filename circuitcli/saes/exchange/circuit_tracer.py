"""circuit-tracer's transcoders: config.yaml, and layer_<i>.safetensors of each layer, or `circuit_tracer_clt`'s files.

W_enc lies transposed there. Its JumpReLU lets negative pre-activations above a negative threshold through, ours does
not, so such thresholds are refused. Its TopK, known since 0.4.1 where ``activation: topk`` and ``k`` are in
config.yaml, keeps the k largest pre-activations whatever their sign.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from circuitcli.errors import InputError
from circuitcli.saes.exchange import circuit_tracer_clt as clt
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import COUNT, LIST, TEXT, checked
from circuitcli.saes.exchange.place import About, Place, read_yaml

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

logger = logging.getLogger(__name__)

NAME = "circuit_tracer"
CONFIG, LAYER = "config.yaml", re.compile(r"layer_([0-9]{1,9})\.safetensors")
THRESHOLD = "activation_function.threshold"
_NAMES = ("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "activation", "scan")
_FIELDS = {**dict.fromkeys(_NAMES, TEXT), "k": COUNT, "transcoders": LIST}
_SET = "transcoder_set"
_KNOWN = ("relu", "jumprelu", "topk", "batchtopk")
# Published without its k, which circuit-tracer knows by this name.
_CRV, _CRV_K = "crv-8b-instruct-transcoders", 128


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The transcoders of a directory. Raises InputError for lists of files elsewhere, and for what is incomplete."""
    layers = {int(found[1]): name for name in names if (found := LAYER.fullmatch(name))}
    has_config, is_clt = (directory / CONFIG).is_file(), any(map(clt.ENCODER.fullmatch, names))
    if not layers and not is_clt and CONFIG not in names:
        return []
    config = config_of(directory / CONFIG) if has_config else {}
    if is_clt:
        path = directory / CONFIG if has_config else None
        return clt.places(directory, names, format_=NAME, config=config, config_path=path)
    if not layers and "feature_input_hook" not in config:
        return []
    if (kind := config.get("model_kind", _SET)) != _SET:
        raise InputError(
            f"{directory / CONFIG} says model_kind {kind}, and files of that are not there",
            hint=f"a {clt.KIND} has W_enc_0.safetensors, ..., a {_SET} layer_0.safetensors, ...; copy them too",
        )
    if not layers:
        elsewhere = " ".join(map(str, config.get("transcoders", [])[:2]))
        raise InputError(
            f"{directory / CONFIG} names transcoders elsewhere: {elsewhere}",
            hint="say which by --layers, or name these with --sae, as in gemma-scope-2b-pt-transcoders/mlp_in.12",
        )
    return [_place(directory, name, layer, config, has_config) for layer, name in sorted(layers.items())]


def config_of(path: Path) -> dict[str, Any]:
    """What a config.yaml says, as far as it is read. Raises InputError for a field of a wrong kind."""
    return checked(read_yaml(path), _FIELDS, path)


def _place(directory: Path, name: str, layer: int, config: Mapping[str, Any], has_config: bool) -> Place:
    path = directory / name
    files = (path, directory / CONFIG) if has_config else (path,)
    if not {"feature_input_hook", "feature_output_hook"} <= config.keys():
        return Place(NAME, path, files, None, None, config.get("model_name"), transcodes=True)
    hook, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_input_hook']}")
    target, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_output_hook']}")
    return Place(NAME, path, files, hook, target, config.get("model_name"))


def read(place: Place) -> "Foreign":
    """The transcoder of a layer. Raises InputError for negative thresholds, and for bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    config = config_of(place.files[-1]) if place.files[-1].name == CONFIG else {}
    if clt.ENCODER.fullmatch(place.files[0].name):
        return clt.read(place, config)
    tensors = Tensors.safetensors(place.files[0])
    if place.target is None:
        raise InputError(
            f"{place.path} holds a transcoder, but there is no {CONFIG} to tell what it predicts",
            hint="say both ends behind an @, for example @mlp_in.5:mlp.5",
        )
    encoder = tensors.take("W_enc", shape=(None, None))
    d_sae, d_in = encoder.shape
    W_dec = tensors.take("W_dec", shape=(d_sae, None))
    parameters = {
        "W_enc": encoder.T,
        "b_enc": tensors.take("b_enc", shape=(d_sae,)),
        "W_dec": W_dec,
        "b_dec": tensors.take("b_dec", shape=(W_dec.shape[1],)),
    }
    architecture, options = _activation(tensors, config, place.path)
    if architecture == "jumprelu":
        parameters["threshold"] = tensors.take(THRESHOLD, shape=(d_sae,))
        if bool((parameters["threshold"] < 0).any()):
            raise InputError(f"{place.path} has negative thresholds, for which circuit-tracer gives negative codes")
    skips = "W_skip" in tensors
    if skips:
        parameters["W_skip"] = tensors.take("W_skip", shape=(W_dec.shape[1], d_in))
    assert place.hook is not None
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=W_dec.shape[1],
        skip=skips,
    )
    entry = config.get("feature_input_hook")
    about = About(
        model=place.model,
        hook=entry,
        target=config.get("feature_output_hook"),
        dtype=tensors.dtype_of("W_dec"),
        before_gain=str(entry).endswith("hook_normalized"),
        training={name: config[name] for name in ("scan",) if config.get(name) is not None},
    )
    return Foreign(build(architecture, sae_config, parameters, path=tensors.path, **options), about)


def _activation(tensors: "Tensors", config: Mapping[str, Any], path: Path) -> tuple[str, dict[str, int]]:
    """The architecture: what the config says, else JumpReLU where there are thresholds, TopK with a k, or ReLU.

    Raises InputError where config and tensors contradict each other, or do not tell enough.
    """
    said, has_thresholds = config.get("activation"), THRESHOLD in tensors
    if said not in (None, *_KNOWN):
        raise InputError(f"{path}: the activation '{said}' is not known", hint=f"{CONFIG} may say {' '.join(_KNOWN)}")
    if said in ("relu", "topk") and has_thresholds:
        raise _untold(path, said, "there are thresholds")
    if has_thresholds:
        return "jumprelu", {}
    if said in ("jumprelu", "batchtopk"):
        raise _untold(path, said, "there are no thresholds")
    k = int(tensors.number("k")) if "k" in tensors else config.get("k")
    if said == "topk" and k is None and _CRV in f"{path} {config.get('scan')}":
        k = _CRV_K
    if (said == "topk") != (k is not None) and "k" not in tensors:
        raise _untold(path, said, "there is no k" if k is None else f"k is {k}")
    return ("relu", {}) if k is None else ("signed_topk", {"k": k})


def _untold(path: Path, said: str | None, seen: str) -> InputError:
    what = f"{CONFIG} says activation {said}" if said else f"{CONFIG} says no activation"
    hint = f"say in {CONFIG} how they were trained: `activation: topk` and `k: NUMBER`, or `activation: relu` and no k"
    return InputError(f"{path}: {what}, but {seen}", hint=hint)


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write transcoders of one kind as one set, or a cross-layer one.

    Raises InputError for what circuit-tracer does not load.
    """
    from circuitcli.saes import folding
    from circuitcli.saes.tensor_files import save_tensors

    if any(item.sae.config.further for item in items):
        made = clt.write(items, directory)
        _write_config(items, directory, kind=clt.KIND)
        return made
    for item in items:
        _check_writable(item.sae)
    kinds = {(sae.hook.site, sae.target.site, sae.d_sae, str(sae.options), sae.config.skip) for sae, _, _ in items}
    if len(kinds) > 1 or len({item.sae.hook.layer for item in items}) < len(items):
        raise InputError(
            "circuit-tracer holds one transcoder a layer, all of one kind and width",
            hint="choose them with --sae, --layers and --sites",
        )
    if "topk" in {item.sae.architecture for item in items}:
        logger.warning(
            "circuit-tracer knows TopK since 0.4.1; where fewer than k features are positive it keeps others"
        )
    layers = sorted(item.sae.hook.layer for item in items)
    if layers != list(range(len(layers))):
        logger.warning("circuit-tracer loads a set only if it has a transcoder for each layer; this one has %s", layers)
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for sae, _, _ in items:
        ours = folding.with_decoder_bias_rule(sae, subtracts=False).state_dict()
        tensors = {"W_enc": ours["W_enc"].T, **{name: ours[name] for name in ("W_dec", "b_enc", "b_dec")}}
        if sae.architecture == "jumprelu":
            # Codes are positive here; there a pre-activation above a negative threshold would be a negative one.
            tensors[THRESHOLD] = ours["threshold"].clamp_min(0)
        if sae.config.skip:
            tensors["W_skip"] = ours["W_skip"]
        path = directory / f"layer_{sae.hook.layer}.safetensors"
        save_tensors(tensors, path)
        made.append(path)
    _write_config(items, directory, kind=_SET)
    return made


# Each of our architectures, and the activation that config.yaml says.
_WRITTEN = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk", "signed_topk": "topk"}


def _check_writable(sae: "SparseCoder") -> None:
    kind = "transcoder" if sae.is_transcoder else "SAE"
    fits = sae.is_transcoder and sae.architecture in _WRITTEN and sae.config.normalisation == "none"
    if not fits or sae.hook.layer != sae.target.layer:
        raise InputError(
            f"circuit-tracer cannot hold the {sae.architecture} {kind} at {sae.hook}",
            hint="it holds ReLU, JumpReLU and TopK transcoders within a layer",
        )
    if sae.d_out != sae.d_in:
        raise InputError(
            f"circuit-tracer cannot load the transcoder at {sae.hook}, of {sae.d_in} inputs and {sae.d_out} outputs",
            hint="both must have the model's width; sae_lens holds such transcoders: --to sae_lens",
        )


def _write_config(items: "Sequence[Foreign]", directory: Path, *, kind: str) -> None:
    sae, about, _ = items[0]
    names = [
        hooks.to_transformer_lens(hook, before_gain=before)
        for hook, before in ((sae.hook, about.before_gain), (sae.target, False))
    ]
    parts = [name.split(".", 2)[2] for name in names]
    activations = {_WRITTEN[item.sae.architecture] for item in items}
    # Of ReLU beside JumpReLU, thresholds in the files tell.
    activation = {"activation": activations.pop()} if len(activations) == 1 else {}
    config = {
        "model_name": about.model,
        "model_kind": kind,
        "feature_input_hook": parts[0],
        "feature_output_hook": parts[1],
        "scan": (about.model or "circuit").rpartition("/")[2],
        **activation,
        **sae.options,
    }
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
