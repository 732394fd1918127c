"""How much memory a stage takes on this machine, for a dry run. All texts are for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter

# What PyTorch, transformers, a tokenizer and text under way take, whatever the model.
_LIBRARIES_BYTES = 600_000_000
# Of a number of each type.
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def memory(on_host: int, on_device: int, *, device: str) -> list[tuple[str, str]]:
    """Bytes beside the libraries, of which some are on the GPU if there is one.

    Raises SettingsError or ToolError for a device that is not there.
    """
    from circuitcli.models.loading import choose_device

    on_host += _LIBRARIES_BYTES
    if choose_device(device).type == "cpu":
        return [("memory", f"about {size(on_host + on_device)}")]
    return [("memory", f"about {size(on_host)}"), ("GPU memory", f"about {size(on_device)}")]


def weight_bytes(adapter: "ModelAdapter") -> int:
    """Bytes of a model's weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in adapter.model.parameters())


def size(n_bytes: int) -> str:
    """Bytes in the largest unit that keeps them above one."""
    number = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
