"""circuit-tracer's per-layer transcoders: config.yaml and layer_<i>.safetensors.

W_enc lies transposed there. Its JumpReLU lets negative pre-activations above a negative threshold through, ours does
not, so such thresholds are refused. Cross-layer transcoders are refused too.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.place import About, Place, read_yaml

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

logger = logging.getLogger(__name__)

NAME = "circuit_tracer"
CONFIG, LAYER = "config.yaml", re.compile(r"layer_(\d+)\.safetensors")
THRESHOLD = "activation_function.threshold"


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The transcoders of a directory. Raises InputError for those across layers, and for lists of files elsewhere."""
    layers = {int(found[1]): name for name in names if (found := LAYER.fullmatch(name))}
    has_config = (directory / CONFIG).is_file()
    if not layers and not (CONFIG in names and "feature_input_hook" in read_yaml(directory / CONFIG)):
        return []
    config = read_yaml(directory / CONFIG) if has_config else {}
    if config.get("model_kind", "transcoder_set") != "transcoder_set":
        raise InputError(
            f"{directory} holds a {config['model_kind']}, which writes to many layers; circuit does not know it",
            hint="per-layer transcoders (model_kind: transcoder_set) are read",
        )
    if not layers:
        elsewhere = " ".join(map(str, config.get("transcoders", [])[:2]))
        raise InputError(
            f"{directory / CONFIG} names transcoders elsewhere: {elsewhere}",
            hint="name these with --sae instead, for example gemma-scope-2b-pt-transcoders/mlp_in.12",
        )
    return [_place(directory, name, layer, config, has_config) for layer, name in sorted(layers.items())]


def _place(directory: Path, name: str, layer: int, config: Mapping[str, Any], has_config: bool) -> Place:
    path = directory / name
    files = (path, directory / CONFIG) if has_config else (path,)
    if "feature_input_hook" not in config:
        return Place(NAME, path, files, None, None, config.get("model_name"))
    hook, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_input_hook']}")
    target, _ = hooks.from_transformer_lens(f"blocks.{layer}.{config['feature_output_hook']}")
    return Place(NAME, path, files, hook, target, config.get("model_name"))


def read(place: Place) -> "Foreign":
    """The transcoder of a layer. Raises InputError for negative thresholds, and for bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    config = read_yaml(place.files[1]) if len(place.files) > 1 else {}
    tensors = Tensors.safetensors(place.files[0])
    if place.target is None:
        raise InputError(
            f"{place.path} holds a transcoder, and no {CONFIG} tells what it predicts",
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
    architecture, options = _activation(tensors, config)
    if architecture == "jumprelu":
        parameters["threshold"] = tensors.take(THRESHOLD, shape=(d_sae,))
        if bool((parameters["threshold"] < 0).any()):
            raise InputError(f"{place.path} has negative thresholds, with which circuit-tracer gives negative codes")
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


def _activation(tensors: "Tensors", config: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """JumpReLU where there are thresholds, TopK where there is a k, else ReLU."""
    if THRESHOLD in tensors:
        return "jumprelu", {}
    if "k" in tensors:
        return "topk", {"k": int(tensors.number("k"))}
    if config.get("activation") == "topk" and config.get("k") is not None:
        return "topk", {"k": int(config["k"])}
    return "relu", {}


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write transcoders of one kind as one set. Raises InputError for what circuit-tracer does not load."""
    from circuitcli.saes.exchange import folding
    from circuitcli.saes.tensor_files import save_tensors

    ends = {(item.sae.hook.site, item.sae.target.site) for item in items}
    for item in items:
        _check_writable(item.sae)
    if len(ends) > 1 or len({item.sae.hook.layer for item in items}) < len(items):
        raise InputError("circuit-tracer holds one transcoder a layer, all of one kind", hint="choose them with --sae")
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
    (directory / CONFIG).write_text(yaml.safe_dump(_written_config(items[0]), sort_keys=False), encoding="utf-8")
    return made


def _check_writable(sae: "SparseAutoencoder") -> None:
    fits = sae.is_transcoder and sae.architecture in ("relu", "jumprelu") and sae.config.normalisation == "none"
    if not fits or sae.hook.layer != sae.target.layer:
        kind = "transcoder" if sae.is_transcoder else "SAE"
        raise InputError(
            f"circuit-tracer cannot hold the {sae.architecture} {kind} at {sae.hook}",
            hint="it holds ReLU and JumpReLU transcoders within a layer",
        )


def _written_config(item: "Foreign") -> dict[str, Any]:
    sae, about, _ = item
    names = [
        hooks.to_transformer_lens(hook, before_gain=before)
        for hook, before in ((sae.hook, about.before_gain), (sae.target, False))
    ]
    parts = [name.split(".", 2)[2] for name in names]
    return {
        "model_name": about.model,
        "model_kind": "transcoder_set",
        "feature_input_hook": parts[0],
        "feature_output_hook": parts[1],
        "scan": (about.model or "circuit").rpartition("/")[2],
    }
