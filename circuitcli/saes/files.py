"""Native SAE files: weights.safetensors and config.json in one directory."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from circuitcli.errors import InputError
from circuitcli.runs import atomic, file_digest, write_error
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseAutoencoder
from circuitcli.saes.folder import CONFIG, FORMAT, WEIGHTS, read_config
from circuitcli.saes.tensor_files import save_tensors


def save(sae: SparseAutoencoder, directory: Path, **facts: Any) -> str:
    """Write the SAE, config last, and return its digest. ``facts`` (scores, training) join config.json."""
    weights = {name: tensor.float() for name, tensor in sae.state_dict().items()}
    path = directory / WEIGHTS
    partial = path.with_name(path.name + ".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, partial)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
    content = {"format": FORMAT, "architecture": sae.architecture, **sae.config.content(), **sae.options, **facts}
    with atomic(directory / CONFIG) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
    return file_digest(path)


def load(directory: Path) -> SparseAutoencoder:
    """The SAE of a directory, on the CPU, taking no gradients. Raises InputError for missing or damaged files."""
    config = read_config(directory)
    path = directory / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="train or copy the SAE again") from None
    sae = _build(config, directory)
    state = sae.state_dict()
    missing = [name for name in state if name not in weights]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}", hint="train or copy the SAE again")
    for name, tensor in state.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, config.json says {tuple(tensor.shape)}",
                hint="train or copy the SAE again",
            )
        tensor.copy_(weights[name])
    return sae.eval().requires_grad_(False)


def _build(content: dict[str, Any], directory: Path) -> SparseAutoencoder:
    made = ARCHITECTURES.get(content.get("architecture", ""))
    if made is None:
        raise InputError(
            f"{directory}: architecture '{content.get('architecture')}' is not known",
            hint=f"known are {' '.join(ARCHITECTURES)}",
        )
    try:
        return made(SaeConfig.of(content), **{name: content[name] for name in made.option_names})
    except KeyError as error:
        raise InputError(f"{directory / CONFIG} lacks {error}", hint="train or copy the SAE again") from None
