"""How long arithmetic takes on this machine, for a dry run."""

import time

# A product of this many rows keeps every core or GPU at work; measured for so long, the best of them counts.
_ROWS = 2048
_MEASURED_S = 0.3


def arithmetic(flops: float, *, width: int, device: str, dtype: str) -> list[tuple[str, str]]:
    """Floating-point operations and the time that they take if done as fast as matrices of this width are multiplied
    here and now: the least that the stage can take, without loading, reading and writing. For people.

    Raises SettingsError or ToolError for a device that is not there.
    """
    rate = multiplying_rate(width=width, device=device, dtype=dtype)
    return [
        ("arithmetic", f"about {flops:.1e} floating-point operations"),
        (
            "time",
            f"at least {duration(flops / rate)}, at {rate / 1e9:,.0f} GFLOP/s, as it multiplies matrices now",
        ),
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
    """For people, in two units at most."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
