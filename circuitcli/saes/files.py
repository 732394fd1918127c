"""Native SAE files: weights.safetensors and config.json in one directory."""

import hashlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.runs import atomic, digest, make_folder, write_error
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.cutting import cut, name_before_cut
from circuitcli.saes.folder import CONFIG, FORMAT, WEIGHTS, read_config, sae_digest
from circuitcli.saes.stored import StoredTensors
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


def content_digest(coder: SparseCoder) -> str:
    """``sha256:...`` of a coder that lies in no file: of its kind, its config and its numbers."""
    numbers = {name: _sha256(tensor) for name, tensor in coder.state_dict().items()}
    return digest([coder.architecture, coder.config.content(), coder.options, numbers])


def _sha256(tensor: torch.Tensor) -> str:
    # In the type of files, whatever model the coder was put beside.
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def load(directory: Path, writes: Container[HookPoint] | None = None) -> SparseCoder:
    """The SAE of a directory, on the CPU, taking no gradients. Raises InputError for missing or damaged files.

    writes: of a transcoder that writes several hook points those that it is to write; the decoders of the others are
    not read. Tensor by tensor is read into its place: no more memory is taken than the weights need.
    """
    content = read_config(directory)
    whole = SaeConfig.of(content)
    kept = whole if writes is None else whole.cut(writes)
    stored = StoredTensors(directory / WEIGHTS, hint=_AGAIN)
    _check_shape(stored, "W_enc", (whole.d_in, whole.d_sae))
    if whole.subtract_decoder_bias and kept.target != whole.target:
        return cut(load(directory), kept.writes)
    with torch.device("meta"):
        sae = _build(content, kept, directory)
    tensors = {}
    for name, place in sae.state_dict().items():
        there = name_before_cut(name, whole, kept)
        _check_shape(stored, there, tuple(place.shape))
        tensors[name] = stored.read(there).float()
    sae.load_state_dict(tensors, assign=True)
    return sae.eval().requires_grad_(False)


def _check_shape(stored: StoredTensors, name: str, shape: tuple[int, ...]) -> None:
    found = stored.shapes.get(name)
    if found is None:
        raise InputError(f"{stored.path} lacks {name}", hint=_AGAIN)
    if found != shape:
        raise InputError(f"{stored.path}: {name} has shape {found}, {CONFIG} says {shape}", hint=_AGAIN)
    if not stored.is_real(name):
        raise InputError(f"{stored.path}: {name} holds {stored.dtypes[name]} not real numbers", hint=_AGAIN)


def _build(content: dict[str, Any], config: SaeConfig, directory: Path) -> SparseCoder:
    made = ARCHITECTURES[content["architecture"]]
    try:
        return made(config, **{name: content[name] for name in made.option_names})
    except SettingsError as error:
        raise InputError(f"{directory / CONFIG}: {error.message}", hint=_AGAIN) from None
