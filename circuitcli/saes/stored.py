"""Tensors of a .safetensors file, each read when it is asked for; what is not asked for is never read.

Names, shapes and number types are in the file's header, and telling them needs no torch.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from circuitcli.errors import InputError, first_line
from circuitcli.saes.folder import check_file

if TYPE_CHECKING:
    from torch import Tensor

_ERRORS = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)


class StoredTensors:
    """What a .safetensors file holds, by name. Raises InputError, with this hint, if it is missing or damaged."""

    def __init__(self, path: Path, *, hint: str) -> None:
        self.path, self.hint = path, hint
        check_file(path)
        try:
            # The library knows what is wrong with a file.
            with safe_open(path, framework="np"):
                pass
            with path.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except _ERRORS as error:
            raise self._unreadable(error) from None
        header.pop("__metadata__", None)
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(told["shape"]) for name, told in header.items()}
        self.dtypes: dict[str, str] = {name: told["dtype"] for name, told in header.items()}

    def is_real(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers."""
        return self.dtypes[name].startswith(("F", "BF"))

    def read(self, name: str, *, column: int | None = None) -> "Tensor":
        """A tensor, or of one of more axes what is at ``column`` of the second; in memory of its own.

        The file is let go before the next is read, so that its pages do not add up.
        """
        try:
            with safe_open(self.path, framework="pt") as stream:
                if column is None:
                    found: Tensor = stream.get_tensor(name)
                else:
                    found = stream.get_slice(name)[:, column : column + 1].squeeze(1)
                return found.clone()
        except _ERRORS as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"cannot read {self.path}: {first_line(error)}", hint=self.hint)
