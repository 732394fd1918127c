"""Writing files of tensors: those of safetensors, and those of torch.save."""

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of any device to the disk, to be read by whom other files are.

    Raises OSError, as other writing does; the library has an error of its own.
    """
    try:
        # The library makes files that their owner alone may read.
        path.touch()
        mode = path.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(mode)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise


def save_pickled(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as torch.save does. Raises OSError, where torch on a full disk has an error of its own."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, buffer)
    with path.open("wb") as stream:
        stream.write(buffer.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())
