"""dictionary_learning 0.1: ae.pt, a state dict, and config.json with what the trainer and the buffer were told.

A norm factor of the activations is never recorded there; the library multiplies it into the biases when it saves.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.fields import COUNT, FACT, INDEX, TEXT, checked, objects
from circuitcli.saes.exchange.place import About, Place, read_object

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "dictionary_learning"
CONFIG, WEIGHTS, CHECKPOINT = "config.json", "ae.pt", re.compile(r"ae_[0-9]{1,9}\.pt")

_SITES = {"resid_pre": "resid_pre", "resid_mid": "resid_mid", "resid_post": "resid", "mlp_out": "mlp"}
_SITES |= {"resid_out": "resid"}
_SITES |= {"attn_out": "attn", "attention_out": "attn"}
# Also as in mlp_out_layer1/10_32768, the folders of Marks et al. 2024 (arXiv:2403.19647) of submodule, id and width.
_SITE = re.compile(
    r"(resid_pre|resid_mid|resid_post|resid_out|mlp_out|attn_out|attention_out)(?:_layer)?_?([0-9]{1,9})"
)
_EMBEDDING, _ID, _PYTHIA = "embed", re.compile(r"[0-9]{1,9}_[0-9]{1,9}"), re.compile(r"pythia-[0-9.]+[mb](-deduped)?")
_TRAINING = ("trainer_class", "steps", "lr", "l1_penalty", "sparsity_penalty", "target_l0", "k", "seed", "auxk_alpha")
_TRAINER = {
    **dict.fromkeys(_TRAINING, FACT),
    **dict.fromkeys(("dict_class", "lm_name", "submodule_name"), TEXT),
    "activation_dim": COUNT,
    "dict_size": COUNT,
    "layer": INDEX,
}
_FIELDS = {"trainer": objects(_TRAINER), "buffer": objects({"io": TEXT, "ctx_len": COUNT})}


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files, or a checkpoint of one."""
    weights = [name for name in sorted(names) if name == WEIGHTS or CHECKPOINT.fullmatch(name)]
    if not weights:
        return []
    path = directory / (WEIGHTS if WEIGHTS in weights else weights[-1])
    config_path = _config_path(path)
    trainer, buffer = _config(config_path)
    files = (path, config_path) if config_path.is_file() else (path,)
    hook = _hook(trainer, buffer, path)
    model = _model(trainer) or _model_of_folders(path)
    return [Place(NAME, path if directory.name == "checkpoints" else directory, files, hook, model=model)]


def _config_path(weights: Path) -> Path:
    """The config beside the weights, or above the folder of checkpoints."""
    folder = weights.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / CONFIG


def _config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trainer and buffer were told; nothing if there is no config."""
    if not path.is_file():
        return {}, {}
    content = checked(read_object(path), _FIELDS, path)
    return content.get("trainer", {}), content.get("buffer", {})


def _model(trainer: Mapping[str, Any]) -> str | None:
    return trainer.get("lm_name")


def _model_of_folders(path: Path) -> str | None:
    """Of Marks et al.'s dictionaries, which lie in a folder that is named for the model."""
    found = next((part.name for part in path.parents if _PYTHIA.fullmatch(part.name)), None)
    return None if found is None else f"EleutherAI/{found}"


def _hook(trainer: Mapping[str, Any], buffer: Mapping[str, Any], path: Path) -> HookPoint | None:
    """From the submodule's name, which is a site and a layer or a module's path; else from the folders' names."""
    named = trainer.get("submodule_name", "")
    for text in (named, *(part.name for part in path.parents)):
        found = _SITE.search(text)
        if found is not None:
            return HookPoint(int(found[2]), _SITES[found[1]])
    if _ID.fullmatch(path.parent.name) and path.parent.parent.name == _EMBEDDING:
        return HookPoint(0, "embed")
    site = next((ours for theirs, ours in _SITES.items() if named.startswith(theirs)), None)
    if site is not None and trainer.get("layer") is not None:
        return HookPoint(trainer["layer"], site)
    if re.search(r"\.[0-9]{1,9}", named):
        return hooks.from_module(named, model=_model(trainer), takes_input=buffer.get("io") == "in")
    return None


def read(place: Place) -> "Foreign":
    """The SAE as its class computes codes. Raises InputError for a class that is not known, or bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    tensors = Tensors.pickled(place.files[0])
    trainer, buffer = _config(_config_path(place.files[0]))
    name = trainer.get("dict_class") or _class_of(tensors)
    if name not in _READERS:
        raise InputError(
            f"{place.path}: the class '{name}' of dictionary_learning is not known",
            hint=f"circuit reads {' '.join(_READERS)}",
        )
    assert place.hook is not None
    architecture, subtracts, parameters = _READERS[name](tensors)
    d_in, d_sae = parameters["W_enc"].shape
    for said, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(said, size) != size:
            raise InputError(
                f"{tensors.path}: the encoder has shape {(d_in, d_sae)}, {CONFIG} says {said} {trainer[said]}",
                hint="copy the SAE again, with its own config",
            )
    config = SaeConfig(place.hook, d_in, d_sae, subtract_decoder_bias=subtracts)
    options = {"k": int(tensors.number("k"))} if architecture == "topk" else {}
    sae = build(architecture, config, parameters, path=tensors.path, **options)
    notes = []
    if name == "AutoEncoder":
        notes = _unit_norm(sae)
    if architecture == "relu" and "threshold" in tensors:
        notes.append("its threshold was never set, so it is a plain ReLU, as in dictionary_learning")
    about = About(
        model=place.model,
        hook=trainer.get("submodule_name"),
        context_length=buffer.get("ctx_len"),
        dtype=tensors.dtype_of("W_enc", "encoder.weight"),
        notes=tuple(notes),
        training={"dict_class": name, **{key: trainer[key] for key in _TRAINING if trainer.get(key) is not None}},
    )
    return Foreign(sae, about)


def _class_of(tensors: "Tensors") -> str:
    """The class whose state dict has these names, where no config tells it."""
    if "gate_bias" in tensors:
        return "GatedAutoEncoder"
    if "group_sizes" in tensors:
        return "MatryoshkaBatchTopKSAE"
    if "W_enc" in tensors and "k" not in tensors:
        return "JumpReluAutoEncoder"
    if "decoder.bias" in tensors:
        return "AutoEncoderNew"
    if "bias" in tensors:
        return "AutoEncoder"
    raise InputError(
        f"{tensors.path}: without a {CONFIG} there is no telling the class of these tensors",
        hint="copy the config too: TopK and BatchTopK have the same tensors but different codes",
    )


_Read = tuple[str, bool, "dict[str, Tensor]"]


def _linear(tensors: "Tensors", *, encoder_bias: str | None, decoder_bias: str) -> "dict[str, Tensor]":
    """The parameters of two linear layers, whose weights are transposed."""
    encoder = tensors.take("encoder.weight", shape=(None, None))
    d_sae, d_in = encoder.shape
    found = {
        "W_enc": encoder.T,
        "W_dec": tensors.take("decoder.weight", shape=(d_in, d_sae)).T,
        "b_dec": tensors.take(decoder_bias, shape=(d_in,)),
    }
    return found if encoder_bias is None else found | {"b_enc": tensors.take(encoder_bias, shape=(d_sae,))}


def _autoencoder(tensors: "Tensors") -> _Read:
    return "relu", True, _linear(tensors, encoder_bias="encoder.bias", decoder_bias="bias")


def _new(tensors: "Tensors") -> _Read:
    return "relu", False, _linear(tensors, encoder_bias="encoder.bias", decoder_bias="decoder.bias")


def _gated(tensors: "Tensors") -> _Read:
    found = _linear(tensors, encoder_bias="gate_bias", decoder_bias="decoder_bias")
    d_sae = found["W_enc"].shape[1]
    found |= {
        ours: tensors.take(theirs, shape=(d_sae,)) for ours, theirs in (("r_mag", "r_mag"), ("b_mag", "mag_bias"))
    }
    return "gated", True, found


def _plain(tensors: "Tensors") -> "dict[str, Tensor]":
    """The parameters of classes that keep matrices in our own layout."""
    W_enc = tensors.take("W_enc", shape=(None, None))
    d_in, d_sae = W_enc.shape
    return {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", shape=(d_sae,)),
        "W_dec": tensors.take("W_dec", shape=(d_sae, d_in)),
        "b_dec": tensors.take("b_dec", shape=(d_in,)),
    }


def _jumprelu(tensors: "Tensors") -> _Read:
    found = _plain(tensors)
    return "jumprelu", False, found | {"threshold": tensors.take("threshold", shape=(found["W_enc"].shape[1],))}


def _topk(tensors: "Tensors") -> _Read:
    return "topk", True, _linear(tensors, encoder_bias="encoder.bias", decoder_bias="b_dec")


def _with_one_threshold(tensors: "Tensors", found: "dict[str, Tensor]") -> _Read:
    """JumpReLU with one threshold; ReLU where it is negative, which means that it was never set."""
    threshold = tensors.number("threshold")
    if threshold < 0:
        return "relu", True, found
    return "jumprelu", True, found | {"threshold": 0 * found["b_enc"] + threshold}


def _batchtopk(tensors: "Tensors") -> _Read:
    return _with_one_threshold(tensors, _linear(tensors, encoder_bias="encoder.bias", decoder_bias="b_dec"))


def _matryoshka(tensors: "Tensors") -> _Read:
    return _with_one_threshold(tensors, _plain(tensors))


_READERS = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def _unit_norm(sae: "SparseCoder") -> list[str]:
    """Do what the library does whenever it loads this class: decoder rows of length 1, codes multiplied."""
    from circuitcli.saes import folding

    norms = sae.W_dec.norm(dim=1)
    if bool(((norms - 1).abs() < 1e-5).all()):
        return []
    folding.fold_decoder_norms(sae)
    return ["decoder rows are brought to length 1 and codes multiplied by the lengths, as dictionary_learning does"]


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write each SAE into a folder SITE_layer_L/trainer_0. Raises InputError for what the library has no class for."""
    from circuitcli.saes.tensor_files import save_pickled

    made = []
    for sae, about, _ in items:
        name, tensors = _written(sae)
        trainer = {
            "dict_class": name,
            "trainer_class": "circuit",
            "activation_dim": sae.d_in,
            "dict_size": sae.d_sae,
            "layer": sae.hook.layer,
            "lm_name": about.model,
            "submodule_name": _submodule(sae.hook),
            **sae.options,
        }
        buffer = {"d_submodule": sae.d_in, "io": "out", "ctx_len": about.context_length}
        folder = directory / _submodule(sae.hook) / "trainer_0"
        folder.mkdir(parents=True, exist_ok=True)
        save_pickled(tensors, folder / WEIGHTS)
        content = json.dumps({"trainer": trainer, "buffer": buffer}, indent=1)
        (folder / CONFIG).write_text(content + "\n", encoding="utf-8")
        made.append(folder)
    return made


def _submodule(hook: HookPoint) -> str:
    name = next((theirs for theirs, ours in _SITES.items() if ours == hook.site), None)
    if name is None:
        raise InputError(f"dictionary_learning has no name for {hook}", hint="choose another --to")
    return f"{name}_layer_{hook.layer}"


# A class for each architecture, and whether it subtracts the decoder bias.
_WRITTEN = {
    "relu": ("AutoEncoderNew", False),
    "gated": ("GatedAutoEncoder", True),
    "topk": ("AutoEncoderTopK", True),
    "jumprelu": ("JumpReluAutoEncoder", False),
}


def _written(sae: "SparseCoder") -> "tuple[str, dict[str, Any]]":
    """The class and its state dict."""
    import torch

    from circuitcli.saes import folding

    if sae.is_transcoder or sae.config.normalisation != "none" or sae.architecture not in _WRITTEN:
        kind = "transcoder" if sae.is_transcoder else f"{sae.architecture} with {sae.config.normalisation} input"
        raise InputError(f"dictionary_learning has no class for the {kind} at {sae.hook}", hint="choose another --to")
    name, subtracts = _WRITTEN[sae.architecture]
    sae = folding.with_decoder_bias_rule(sae, subtracts=subtracts)
    ours = {key: tensor.detach().clone() for key, tensor in sae.state_dict().items()}
    if name == "JumpReluAutoEncoder":
        return name, ours
    weights = {"encoder.weight": ours["W_enc"].T.contiguous(), "decoder.weight": ours["W_dec"].T.contiguous()}
    if name == "GatedAutoEncoder":
        biases = {"decoder_bias": "b_dec", "gate_bias": "b_enc", "mag_bias": "b_mag", "r_mag": "r_mag"}
    else:
        biases = {"encoder.bias": "b_enc", "decoder.bias" if name == "AutoEncoderNew" else "b_dec": "b_dec"}
    weights |= {theirs: ours[mine] for theirs, mine in biases.items()}
    if name == "AutoEncoderTopK":
        weights |= {"k": torch.tensor(sae.options["k"]), "threshold": torch.tensor(-1.0)}
    return name, weights
