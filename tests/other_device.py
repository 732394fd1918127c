"""``circuit`` with a device that is not the CPU: ``python tests/other_device.py COMMAND --device other + COMMAND ...``.
Where TESTS_DEVICE names a real device, no other is made.

PyTorch lets a back end be written in Python. The tensors of this one lie in the CPU's memory but are kept apart as a
GPU's are: an operation that mixes the two fails here as it fails there, so code that forgets to move a tensor is found
on a machine without a GPU. With OTHER_DEVICE_FLOAT64=0 there are no numbers of 64 bits, as on Apple's GPUs. The back
end stays for as long as the process.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "other"
# Moves between devices, and those that take indices of the CPU for tensors of another device.
MOVES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# What it adds to PyTorch's operations holds for as long as this lives.
LIBRARY = torch.library.Library("aten", "IMPL")
AUTOCAST = torch.library.Library("_", "IMPL")
HAS_FLOAT64 = os.environ.get("OTHER_DEVICE_FLOAT64") != "0"


class OtherModule(_DummyBackendModule):
    """What PyTorch asks a back end."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class OtherTensor(Tensor):
    """A tensor on the other device; ``numbers`` are its numbers in the CPU's memory."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OtherTensor":
        if numbers.dtype == torch.float64 and not HAS_FLOAT64:
            raise TypeError("this device has no float64")
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=f"{NAME}:0",
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """PyTorch's own refuses tensors of another class."""
        return self.numbers.tolist()


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OtherTensor)]
    _check(operation, args, tensors)
    is_there = bool(there)
    kwargs = tree_map(_numbers, kwargs)
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = "cpu"
    result = operation(*tree_map(_numbers, args), **kwargs)
    if operation.name() == "aten::_to_copy" and not is_there:
        return result.clone()
    if not is_there:
        return result
    known = {id(tensor.numbers): tensor for tensor in there}
    return tree_map(lambda part: _there(part, known) if isinstance(part, Tensor) else part, result)


def _there(numbers: Tensor, known: dict[int, OtherTensor]) -> OtherTensor:
    """The tensor with these numbers: an operation in place gives what it was given."""
    return known[id(numbers)] if id(numbers) in known else OtherTensor(numbers)


def _check(operation: Any, args: Any, tensors: Iterable[Tensor]) -> None:
    """Raises RuntimeError for an operation that CUDA would refuse because its tensors are on different devices."""
    name = operation.name()
    here = [tensor for tensor in tensors if not isinstance(tensor, OtherTensor)]
    if not here or name in MOVES:
        return
    if name in INDEXING and isinstance(args[0], OtherTensor):
        values = args[2] if len(args) > 2 else None
        if values is None or isinstance(values, OtherTensor) or values.dim() == 0:
            return
    elif torch.Tag.pointwise in operation.tags and all(tensor.dim() == 0 for tensor in here):
        return
    kinds = [(type(tensor).__name__, tuple(tensor.shape)) for tensor in tensors]
    raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {kinds}")


def _numbers(part: Any) -> Any:
    return part.numbers if isinstance(part, OtherTensor) else part


def is_real() -> bool:
    """Whether tests are to use a device that this machine has."""
    return os.environ.get("TESTS_DEVICE", NAME) != NAME


def register() -> None:
    """Make the device known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=OtherModule())

    def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, **options: Any) -> Tensor:
        return OtherTensor(torch.empty(size, dtype=dtype))

    def empty_strided(size: Any, stride: Any, dtype: Any = None, **options: Any) -> Tensor:
        return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))

    def copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        _numbers(target).copy_(_numbers(source))
        return target

    def number(tensor: Tensor) -> float:
        return _numbers(tensor).item()

    # PyTorch's own makes an empty tensor and lets it grow, which tensors of another class do not.
    def arange(*bounds: Any, dtype: Any = None, **options: Any) -> Tensor:
        return OtherTensor(torch.arange(*bounds, dtype=dtype))

    for name, of_cpu in (
        ("arange", arange),
        ("arange.start", arange),
        ("arange.start_step", arange),
        ("empty.memory_format", empty),
        ("empty_strided", empty_strided),
        ("_copy_from", copy),
        ("_local_scalar_dense", number),
    ):
        LIBRARY.impl(name, of_cpu, "PrivateUse1")
    AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


class Launcher:
    """A kernel of Triton's interpreter, which is given numbers as a GPU's kernel is: none of the CPU's."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **constants: Any) -> None:
            _check_launch(args)
            self.kernel[grid](*map(_numbers, args), **constants)

        return launch


def _check_launch(args: Iterable[Any]) -> None:
    if any(isinstance(part, Tensor) and not isinstance(part, OtherTensor) for part in args):
        raise RuntimeError("a kernel was given a tensor of the CPU")


def run_kernels(change: Callable[[Any, str, Any], None]) -> None:
    """Take the way of a GPU with kernels, which Triton's interpreter runs; with what `change`, as setattr, changes."""
    os.environ["TRITON_INTERPRET"] = "1"
    from circuitcli.saes.fast import kernels, sparse

    for name in ("_sums_kernel", "_products_kernel"):
        change(kernels, name, Launcher(getattr(kernels, name)))
    change(sparse, "_kernels", lambda device: kernels if device.type == NAME else None)


def main(words: Sequence[str]) -> int:
    """Run the commands, one after the other; the exit status is of the first that fails."""
    from circuitcli.__main__ import main as circuit

    if not is_real():
        register()
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "+":
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        sys.argv = ["circuit", *command]
        if status := circuit():
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
