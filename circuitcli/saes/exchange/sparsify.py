"""EleutherAI's sparsify 1.x: for each hook point a folder, named by the module, with cfg.json and sae.safetensors.

Its SAEs act on a module's output; with ``transcode`` they predict it from the module's input. All subtract the decoder
bias before encoding unless they transcode, whatever ``normalize_decoder`` says.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange import sparsify_clt as clt
from circuitcli.saes.exchange.fields import field_of
from circuitcli.saes.exchange.place import About, Place
from circuitcli.saes.exchange.sparsify_files import (
    CONFIG,
    RUN_CONFIG,
    TRAINING,
    WEIGHTS,
    config_of,
    read_by,
    run_config_of,
)

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "sparsify"


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files; its own name tells the module."""
    if not {CONFIG, WEIGHTS} <= names:
        return []
    config, run = config_of(directory), run_config_of(directory)
    model = run.get("model")
    files: tuple[Path, ...] = (directory / WEIGHTS, directory / CONFIG)
    transcodes = bool(config.get("transcode"))
    if not hooks.names_module(directory.name):
        # Copied into a folder of another name.
        return [Place(NAME, directory, files, None, None, model, transcodes=transcodes)]
    target = hooks.from_module(directory.name, model=model)
    if not transcodes:
        return [Place(NAME, directory, files, target, None, model)]
    hook = read_by(directory, run)
    others = clt.folders_of(directory, config, run)[1:] if clt.is_ours(config) else ()
    if clt.needs_targets(config):
        files += tuple(path for other in others for path in (other / WEIGHTS, other / CONFIG) if path.is_file())
    further = tuple(hooks.from_module(other.name, model=model) for other in others)
    return [Place(NAME, directory, files, hook, target, model, further=further)]


def read(place: Place) -> "Foreign":
    """The SAE or transcoder. Raises InputError for group-max, for a skip that transcodes nothing, and for bad files.

    Transcoders whose config tells a number of targets are those of clt-training, whose options are more.
    """
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    config, run = config_of(place.path), run_config_of(place.path)
    transcodes, skips = bool(config.get("transcode")), bool(config.get("skip_connection"))
    if transcodes and place.target is None:
        raise InputError(
            f"{place.path} holds a transcoder, but the name of its folder does not tell its module",
            hint="say both ends behind an @, for example @mlp_in.5:mlp.5",
        )
    if clt.is_ours(config):
        return clt.read(place, config, _about(place, run, dtype=None, transcodes=True))
    tensors = Tensors.safetensors(place.path / WEIGHTS)
    _refuse(place, config, tensors)
    W_dec = tensors.take("W_dec", "decoder.weight", shape=(None, None))
    d_sae, d_in = W_dec.shape
    wanted = config.get("num_latents") or d_in * config.get("expansion_factor", 0)
    if (config.get("d_in", d_in), wanted or d_sae) != (d_in, d_sae):
        raise InputError(
            f"{tensors.path}: W_dec has shape {(d_sae, d_in)}, {CONFIG} says {(wanted, config.get('d_in'))}",
            hint="copy the SAE again, with its own config",
        )
    parameters = {
        "W_enc": tensors.take("encoder.weight", shape=(d_sae, d_in)).T,
        "b_enc": tensors.take("encoder.bias", shape=(d_sae,)),
        "W_dec": W_dec,
        "b_dec": tensors.take("b_dec", shape=(d_in,)),
    }
    if skips:
        parameters["W_skip"] = tensors.take("W_skip", shape=(d_in, d_in))
    assert place.hook is not None
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=not transcodes,
        target=place.target,
        d_out=d_in if transcodes else None,
        skip=skips,
    )
    # Older versions could select by magnitude and keep the sign.
    architecture = "abstopk" if config.get("signed") else "topk"
    k = field_of(config, "k", place.path / CONFIG)
    sae = build(architecture, sae_config, parameters, path=tensors.path, k=k)
    dtype = tensors.dtype_of("W_dec", "decoder.weight")
    return Foreign(sae, _about(place, run, dtype=dtype, transcodes=transcodes))


def _about(place: Place, run: Mapping[str, Any], *, dtype: str | None, transcodes: bool) -> About:
    """What its folder's name and the training's config tell."""
    return About(
        model=run.get("model"),
        hook=place.path.name,
        target=place.path.name if transcodes else None,
        context_length=run.get("ctx_len"),
        dtype=dtype,
        dataset=run.get("dataset"),
        training={name: run[name] for name in TRAINING if run.get(name) is not None},
    )


def _refuse(place: Place, config: Mapping[str, Any], tensors: "Tensors") -> None:
    if config.get("activation", "topk") != "topk":
        raise InputError(f"{place.path}: circuit has no '{config['activation']}' of sparsify", hint="it reads topk")
    if config.get("skip_connection") and not config.get("transcode"):
        raise InputError(f"{place.path}: an SAE with a skip connection that is not a transcoder is not known")
    changing = [name for name in ("normalize_io", "post_encoder_scale") if config.get(name)]
    if "post_enc" in tensors and bool(tensors.take("post_enc", shape=(None,)).any()):
        changing.append("post_enc")
    if changing:
        raise InputError(
            f"{place.path}: an SAE of clt-training with {' and '.join(changing)} is not known",
            hint="its transcoders are read with normalize_io and post_encoder_scale",
        )


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write each SAE into a folder with its module's path in the base model. Raises InputError for all but TopK."""
    from circuitcli.saes import folding
    from circuitcli.saes.tensor_files import save_tensors

    made = []
    for sae, about, _ in items:
        _check_writable(sae)
        sae = folding.with_decoder_bias_rule(sae, subtracts=not sae.is_transcoder)
        ours = sae.state_dict()
        tensors = {
            "encoder.weight": ours["W_enc"].T.contiguous(),
            "encoder.bias": ours["b_enc"],
            "W_dec": ours["W_dec"],
            "b_dec": ours["b_dec"],
        }
        if sae.config.skip:
            tensors["W_skip"] = ours["W_skip"]
        folder = directory / module_name(sae.target, about.module)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(_written_config(sae), indent=1) + "\n", encoding="utf-8")
        made.append(folder)
    run = {"model": items[0].about.model, "dataset": items[0].about.dataset, "ctx_len": items[0].about.context_length}
    (directory / RUN_CONFIG).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return made


def module_name(hook: HookPoint, module: str | None) -> str:
    """The module's path as sparsify names folders: from the base model on, so without ``model.``."""
    if module is None:
        raise InputError(
            f"the module of {hook} depends on the model, which is not known",
            hint="name the model with --model, or a run of it with --run",
        )
    head, _, rest = module.partition(".")
    return rest if rest and head in ("model", "transformer", "gpt_neox") else module


def _check_writable(sae: "SparseCoder") -> None:
    fits = sae.architecture == "topk" and sae.config.normalisation == "none" and sae.d_in == sae.d_out
    same_module = not sae.is_transcoder or (sae.hook.site, sae.target.site) in {("mlp_in", "mlp"), ("attn_in", "attn")}
    if not fits or not same_module or sae.config.further or sae.hook.layer != sae.target.layer:
        kind = "transcoder" if sae.is_transcoder else "SAE"
        raise InputError(
            f"sparsify cannot hold the {sae.architecture} {kind} at {sae.hook}",
            hint="it holds TopK without normalisation; choose another --to",
        )


def _written_config(sae: "SparseCoder") -> dict[str, Any]:
    return {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": False,
        "num_latents": sae.d_sae,
        **sae.options,
        "multi_topk": False,
        "skip_connection": sae.config.skip,
        "transcode": sae.is_transcoder,
        "d_in": sae.d_in,
    }
