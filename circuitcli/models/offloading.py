"""A model that no single device holds: how it is spread over devices, and reading weights that lie elsewhere.

accelerate gives every part a device on which it runs; what does not fit waits in the CPU's memory or on disk, is a
parameter on the meta device meanwhile, and is fetched whenever its part runs.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuitcli import progress
from circuitcli.errors import SettingsError, ToolError
from circuitcli.settings.model import ModelSettings

# Of what is free on a device without a limit; the rest is for activations.
_SHARE = 0.9


def is_spread(settings: ModelSettings) -> bool:
    """Whether accelerate places the model's parts. Raises SettingsError if a single device is asked for too."""
    if settings.device_map is None and not settings.max_memory:
        return False
    if settings.device != "auto":
        asked = f"model.device_map={settings.device_map}" if settings.device_map else "model.max_memory"
        raise SettingsError(
            f"{asked} spreads the model over all devices, but --device {settings.device} asks for one",
            hint="leave out --device, or the other; --set model.max_memory=0=0GiB keeps a GPU free",
        )
    return True


@contextmanager
def placement(settings: ModelSettings) -> Iterator[dict[str, Any]]:
    """What transformers is told of devices while it loads a model: nothing unless it `is_spread`.

    Weights that it writes to disk are removed if it fails, later by `placed`. Raises ToolError for a device that is
    not here.
    """
    if not is_spread(settings):
        yield {}
        return
    options: dict[str, Any] = {"device_map": settings.device_map or "auto"}
    if settings.max_memory:
        options["max_memory"] = _limits(settings)
    folder = _folder(settings)
    try:
        yield options | {"offload_folder": str(folder)}
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Weights that are read where they are, in the model's own files, leave nothing here.
    if not any(folder.iterdir()):
        folder.rmdir()


def placed(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Say where a model's weights are that was loaded with these options, and remove files of them when it goes."""
    if "offload_folder" in options:
        weakref.finalize(model, shutil.rmtree, options["offload_folder"], ignore_errors=True)
        _tell(model)


def _limits(settings: ModelSettings) -> dict[int | str, int]:
    """Bytes by device, as accelerate counts them; devices that are not named get what they have."""
    from accelerate.utils import get_max_memory

    free = {device: int(n_bytes * _SHARE) for device, n_bytes in get_max_memory().items()}
    for device, n_bytes in settings.memory_limits.items():
        if device not in free:
            raise ToolError(
                f"device {device} of model.max_memory is not available here",
                hint=f"name some of {' '.join(map(str, free))}; what does not fit there goes to the disk",
            )
        free[device] = n_bytes
    return free


def _folder(settings: ModelSettings) -> Path:
    parent = None if settings.offload_folder is None else Path(settings.offload_folder).expanduser()
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="circuit-weights-", dir=parent))
    except OSError as error:
        raise SettingsError(
            f"cannot write to {parent or tempfile.gettempdir()}: {error.strerror}",
            hint="--set model.offload_folder=DIR names another folder for weights",
        ) from None


def _tell(model: nn.Module) -> None:
    """How many bytes of the weights are where; nothing if they are on one device."""
    devices: dict[str, str] = {prefix: str(device) for prefix, device in getattr(model, "hf_device_map", {}).items()}
    if not devices:
        return
    n_bytes = dict.fromkeys(devices.values(), 0)
    for name, parameter in model.named_parameters():
        prefix = max((part for part in devices if f"{name}.".startswith(f"{part}." if part else "")), key=len)
        n_bytes[devices[prefix]] += parameter.numel() * parameter.element_size()
    told = ", ".join(f"{number / 2**20:,.1f} MiB {_where(device)}" for device, number in n_bytes.items())
    progress.note(f"the model's weights are spread: {told}")


def _where(device: str) -> str:
    return {"cpu": "in memory", "disk": "on disk"}.get(device, f"on GPU {device}")


def running_device(module: nn.Module) -> torch.device:
    """Where a part of a model computes, which for weights that lie elsewhere is not where they are."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    # accelerate calls GPUs by their number.
    return next(module.parameters()).device if device is None else torch.device(device)


@contextmanager
def weights_at_hand(*modules: nn.Module) -> Iterator[None]:
    """While this is open, the modules' own parameters hold their numbers, wherever these lie."""
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(align_module_device(module))
        yield
