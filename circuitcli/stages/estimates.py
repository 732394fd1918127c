"""How much memory and time a stage takes on this machine, for a dry run. All texts are for people."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter

# A product of this many rows keeps every core or GPU at work; measured for so long, the best of them counts.
_ROWS = 2048
_MEASURED_S = 0.3
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


def pass_flops(adapter: "ModelAdapter", blocks: range, *, block_length: int) -> int:
    """Floating-point operations of a token through some blocks: two for each weight, and attention's own products."""
    weights = sum(parameter.numel() for index in blocks for parameter in adapter.blocks[index].parameters())
    return 2 * weights + 4 * len(blocks) * block_length * adapter.d_model


def size(n_bytes: int) -> str:
    """Bytes in the largest unit that keeps them above one."""
    number = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def arithmetic(flops: Mapping[str, float], *, width: int, device: str) -> list[tuple[str, str]]:
    """Floating-point operations, given by number type, and the time that they take if done as fast as matrices of this
    width are multiplied here and now: the least that the stage can take, without loading, reading and writing.

    Raises SettingsError or ToolError for a device that is not there.
    """
    rates = {dtype: multiplying_rate(width=width, device=device, dtype=dtype) for dtype in flops}
    seconds = sum(number / rates[dtype] for dtype, number in flops.items())
    told = " and ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return [
        ("arithmetic", f"about {sum(flops.values()):.1e} floating-point operations"),
        ("time", f"at least {duration(seconds)}, at {told}, as it multiplies matrices now"),
    ]


def multiplying_rate(*, width: int, device: str, dtype: str) -> float:
    """Floating-point operations per second of a product of matrices."""
    import torch

    from circuitcli.models.loading import choose_device

    place = choose_device(device)
    left = torch.ones(_ROWS, width, device=place, dtype=getattr(torch, dtype))
    right = torch.ones(width, 4 * width, device=place, dtype=left.dtype)
    flops, best, begin = 2.0 * left.numel() * right.shape[1], float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _MEASURED_S:
        start = time.perf_counter()
        # Reading one number waits for the device.
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - start)
    return flops / best


def duration(seconds: float) -> str:
    """In two units at most."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
