"""Native SAE files: weights.safetensors and config.json in one directory."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.runs import atomic, file_digest, write_error
from circuitcli.saes.base import SparseAutoencoder
from circuitcli.saes.folder import CONFIG, FORMAT, WEIGHTS, read_config
from circuitcli.saes.topk import TopKSae

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def save(sae: SparseAutoencoder, directory: Path, **facts: Any) -> str:
    """Write the SAE, config last, and return its digest. ``facts`` (scores, training) join config.json."""
    weights = {name: getattr(sae, name).detach().float().cpu().contiguous() for name in TENSORS}
    path = directory / WEIGHTS
    partial = path.with_name(path.name + ".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
    content = {"format": FORMAT, **asdict(sae.config), "hook": str(sae.hook), **sae.options, **facts}
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
    missing = [name for name in TENSORS if name not in weights]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}", hint="train or copy the SAE again")
    for name in TENSORS:
        expected, found = getattr(sae, name).shape, weights[name].shape
        if expected != found:
            raise InputError(f"{path}: {name} has shape {tuple(found)}, config.json says {tuple(expected)}")
        getattr(sae, name).data = weights[name].to(torch.float32)
    return sae.eval().requires_grad_(False)


def _build(config: dict[str, Any], directory: Path) -> SparseAutoencoder:
    if config.get("architecture") != TopKSae.architecture:
        raise InputError(f"{directory}: architecture '{config.get('architecture')}' is not known")
    return TopKSae(
        config["d_in"],
        config["d_sae"],
        config["k"],
        HookPoint.parse(config["hook"]),
        normalisation=config["normalisation"],
    )
