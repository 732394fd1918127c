"""Writing files of tensors: those of safetensors, and those of torch.save."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of any device. Raises OSError, as other writing does; the library has an error of its own."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def save_pickled(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as torch.save does. Raises OSError, where torch on a full disk has an error of its own."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, buffer)
    path.write_bytes(buffer.getbuffer())
