"""Native SAE files: weights.safetensors and config.json in one directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcli.errors import InputError, SettingsError, first_line
from circuitcli.runs import atomic, make_folder, write_error
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.folder import CONFIG, FORMAT, WEIGHTS, check_file, read_config, sae_digest
from circuitcli.saes.tensor_files import save_tensors

_AGAIN = "train or copy the SAE again"


def save(sae: SparseCoder, directory: Path, **facts: Any) -> str:
    """Write the SAE, config last, and return its `sae_digest`. ``facts`` (scores, training) join config.json."""
    weights = {name: tensor.float() for name, tensor in sae.state_dict().items()}
    path = directory / WEIGHTS
    partial = path.with_name(path.name + ".partial")
    try:
        make_folder(directory)
        save_tensors(weights, partial)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
    content = {"format": FORMAT, "architecture": sae.architecture, **sae.config.content(), **sae.options, **facts}
    with atomic(directory / CONFIG) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
    return sae_digest(directory)


def load(directory: Path) -> SparseCoder:
    """The SAE of a directory, on the CPU, taking no gradients. Raises InputError for missing or damaged files."""
    config = read_config(directory)
    path = directory / WEIGHTS
    check_file(path)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}", hint=_AGAIN) from None
    # Before anything of the size that config.json tells is made.
    _check_shape(path, weights, "W_enc", (config["d_in"], config["d_sae"]))
    sae = _build(config, directory)
    for name, tensor in sae.state_dict().items():
        _check_shape(path, weights, name, tuple(tensor.shape))
        tensor.copy_(weights[name])
    return sae.eval().requires_grad_(False)


def _check_shape(path: Path, weights: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    found = weights.get(name)
    if found is None:
        raise InputError(f"{path} lacks {name}", hint=_AGAIN)
    if tuple(found.shape) != shape:
        raise InputError(f"{path}: {name} has shape {tuple(found.shape)}, config.json says {shape}", hint=_AGAIN)
    if not found.is_floating_point():
        raise InputError(f"{path}: {name} holds {found.dtype}, not real numbers", hint=_AGAIN)


def _build(content: dict[str, Any], directory: Path) -> SparseCoder:
    made = ARCHITECTURES[content["architecture"]]
    try:
        return made(SaeConfig.of(content), **{name: content[name] for name in made.option_names})
    except SettingsError as error:
        raise InputError(f"{directory / CONFIG}: {error.message}", hint=_AGAIN) from None
