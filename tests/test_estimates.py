"""What a dry run says about time."""

import time

import pytest
import torch

from circuitcli.errors import ToolError
from circuitcli.stages.estimates import arithmetic, duration, multiplying_rate


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.01, "1 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (3570.0, "1 h 0 min"),
        (3540.0, "59 min"),
        (86_400 * 2.5, "60 h 0 min"),
    ],
)
def test_durations_are_told_in_two_units_at_most(seconds: float, told: str):
    assert duration(seconds) == told


def test_the_rate_is_that_of_a_product_of_matrices():
    rate = multiplying_rate(width=256, device="cpu", dtype="float32")
    left, right = torch.ones(2048, 256), torch.ones(256, 1024)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    # At another moment of a busy machine.
    assert 0.1 < rate / (2 * 2048 * 256 * 1024 / min(times)) < 10


def test_half_the_work_takes_half_the_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("circuitcli.stages.estimates.multiplying_rate", lambda **_: 2e9)
    rows = dict(arithmetic(7.2e12, width=64, device="cpu", dtype="float32"))
    assert rows["arithmetic"] == "about 7.2e+12 floating-point operations"
    assert rows["time"].startswith("at least 1 h 0 min, at 2 GFLOP/s")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ToolError, match="cuda:77"):
        multiplying_rate(width=8, device="cuda:77", dtype="float32")
