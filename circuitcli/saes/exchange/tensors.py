"""Tensors of foreign files by name, with an error that names file and tensor for whatever is wrong; no code is run."""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcli.errors import InputError, SettingsError, first_line
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.exchange.place import About
from circuitcli.saes.folder import check_file

_AGAIN = "copy the SAE again"


class Foreign(NamedTuple):
    """An SAE as it was read; ``frequency`` (d_sae,) is the share of tokens on which a feature fired in training."""

    sae: SparseCoder
    about: About
    frequency: Tensor | None = None


class Tensors:
    """What a file of weights holds, by name."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, dict(content)

    @classmethod
    def safetensors(cls, path: Path) -> "Tensors":
        """Of a .safetensors file. Raises InputError if it is missing or damaged."""
        check_file(path)
        try:
            return cls(path, load_file(path))
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"cannot read {path}: {first_line(error)}", hint=_AGAIN) from None

    @classmethod
    def pickled(cls, path: Path) -> "Tensors":
        """Of a file of torch.save; code in it is not run. Raises InputError if it has some, is missing or damaged."""
        check_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise InputError(
                f"{path} contains more than tensors and numbers: such a file can run any code, so it is not read",
                hint="ask for the weights as .safetensors, or as a plain state dict",
            ) from None
        except Exception as error:
            raise InputError(f"cannot read {path}: {first_line(error)}", hint=_AGAIN) from None
        if not isinstance(content, Mapping):
            raise InputError(f"{path} holds a {type(content).__name__}, not tensors by name", hint=_AGAIN)
        return cls(path, {name: value for name, value in content.items() if isinstance(name, str)})

    @classmethod
    def npz(cls, path: Path) -> "Tensors":
        """Of numpy's .npz file. Raises InputError if it is missing or damaged, or holds objects."""
        check_file(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(path, {name: torch.from_numpy(arrays[name]) for name in arrays.files})
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise InputError(f"cannot read {path}: {first_line(error)}", hint=_AGAIN) from None

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def name_of(self, *names: str) -> str:
        """The first of these names that is there. Raises InputError if none is."""
        for name in names:
            if name in self.content:
                return name
        raise InputError(
            f"{self.path} has no tensor {' or '.join(names)}",
            hint=f"it has {' '.join(sorted(self.content)[:12]) or 'none'}; is the format the right one?",
        )

    def take(self, *names: str, shape: tuple[int | None, ...]) -> Tensor:
        """The tensor of the first of these names, in float32; None in the shape is any number.

        Raises InputError, naming file and tensor, if there is none or its shape is another.
        """
        name = self.name_of(*names)
        found = self.content[name]
        if isinstance(found, Tensor) and not (found.is_floating_point() and found.layout == torch.strided):
            raise InputError(f"{self.path}: {name} holds {found.dtype}, not dense real numbers", hint=_AGAIN)
        fits = isinstance(found, Tensor) and len(found.shape) == len(shape)
        if not fits or any(wanted not in (None, size) for wanted, size in zip(shape, found.shape, strict=True)):
            seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise InputError(f"{self.path}: {name} has shape {seen}, expected ({wanted})", hint=_AGAIN)
        return found.float()

    def linear_layers(self, encoder: str, b_enc: str, decoder: str, b_dec: str) -> dict[str, Tensor]:
        """Our parameters, of tensors of these names whose weights are stored as `nn.Linear` does, outputs first.

        Raises InputError as `take`.
        """
        W_enc = self.take(encoder, shape=(None, None))
        d_sae, d_in = W_enc.shape
        return {
            "W_enc": W_enc.T,
            "b_enc": self.take(b_enc, shape=(d_sae,)),
            "W_dec": self.take(decoder, shape=(d_in, d_sae)).T,
            "b_dec": self.take(b_dec, shape=(d_in,)),
        }

    def number(self, *names: str) -> float:
        """A single number, stored as such or as a tensor. Raises InputError if there is none."""
        name = self.name_of(*names)
        try:
            return float(self.content[name])
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{self.path}: {name} is not a single number", hint=_AGAIN) from None

    def dtype_of(self, *names: str) -> str:
        """Number type of a tensor as stored, for example bfloat16."""
        return str(getattr(self.content[self.name_of(*names)], "dtype", None)).removeprefix("torch.")


def decoders(
    found: Iterable[tuple[Tensor, Tensor | None]], *, skip: Tensor | None = None, d_out: int
) -> dict[str, Tensor]:
    """Our parameters of coders that write several hook points: of each, in order, the decoder and the bias, if any.

    skip: what the first that has a bias carries; the others carry nothing.
    """
    named: dict[str, Tensor] = {}
    for number, (decoder, bias) in enumerate(found):
        suffix = f"_{number}" if number else ""
        named[f"W_dec{suffix}"] = decoder
        named[f"b_dec{suffix}"] = decoder.new_zeros(d_out) if bias is None else bias
        if skip is not None:
            # One number for all.
            named[f"W_skip{suffix}"] = skip.new_zeros(()).expand_as(skip) if bias is None else skip
    return named


def build(
    architecture: str, config: SaeConfig, parameters: Mapping[str, Tensor], *, path: Path, **options: Any
) -> SparseCoder:
    """An SAE of these parameters, on the CPU, taking no gradients. Raises InputError if one does not fit the others."""
    try:
        with torch.device("meta"):
            made = ARCHITECTURES[architecture](config, **options)
    except SettingsError as error:
        raise InputError(f"{path}: {error.message}", hint=_AGAIN) from None
    for name, tensor in made.state_dict().items():
        if parameters[name].shape != tensor.shape:
            seen, wanted = tuple(parameters[name].shape), tuple(tensor.shape)
            raise InputError(f"{path}: {name} has shape {seen}, the other tensors ask for {wanted}", hint=_AGAIN)
    made.load_state_dict({name: _own(tensor) for name, tensor in parameters.items()}, assign=True)
    return made.eval().requires_grad_(False)


def _own(tensor: Tensor) -> Tensor:
    """In float32 and in one piece, if it is not one number for all."""
    return tensor.float() if 0 in tensor.stride() else tensor.float().contiguous()
