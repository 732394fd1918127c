"""What a dry run says about memory and time."""

import subprocess
import sys
import time

import pytest
import torch

from circuitcli.errors import ToolError
from circuitcli.stages import estimates
from circuitcli.stages.estimates import arithmetic, duration, memory, multiplying_rate, size

RATES = {"float32": 2e9, "bfloat16": 2e10}


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
    rows = dict(arithmetic({"float32": 7.2e12}, width=64, device="cpu"))
    assert rows["arithmetic"] == "about 7.2e+12 floating-point operations"
    assert rows["time"].startswith("at least 1 h 0 min, at 2 GFLOP/s")


def test_work_in_two_number_types_takes_the_time_of_both(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("circuitcli.stages.estimates.multiplying_rate", lambda *, dtype, **_: RATES[dtype])
    rows = dict(arithmetic({"float32": 2e11, "bfloat16": 2e12}, width=64, device="cpu"))
    assert rows["arithmetic"] == "about 2.2e+12 floating-point operations"
    assert rows["time"].startswith("at least 3 min, at 2 GFLOP/s in float32 and 20 GFLOP/s in bfloat16,")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ToolError, match="cuda:77"):
        multiplying_rate(width=8, device="cuda:77", dtype="float32")


@pytest.mark.parametrize(
    ("n_bytes", "told"),
    [(0, "0 bytes"), (999, "999 bytes"), (1536, "1.54 kB"), (2_500_000_000, "2.5 GB"), (42 * 10**14, "4,200.0 TB")],
)
def test_bytes_are_told_in_the_largest_unit_that_they_fill(n_bytes: int, told: str):
    assert size(n_bytes) == told


def test_what_a_gpu_holds_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    assert memory(10**9, 2 * 10**9, device="cpu") == [("memory", "about 3.6 GB")]
    monkeypatch.setattr("circuitcli.models.loading.choose_device", torch.device)
    assert memory(10**9, 2 * 10**9, device="cuda") == [("memory", "about 1.6 GB"), ("GPU memory", "about 2 GB")]


@pytest.mark.skipif(sys.platform != "linux", reason="libraries differ by platform")
def test_the_libraries_take_what_is_told_of_them():
    """Those of a collection, at work on a model of no size."""
    work = """if True:
        import sys, tempfile
        from circuitcli.training.memory import peak_process_bytes
        sys.path.insert(0, "tests")
        from pathlib import Path
        import torch
        from support_collect import collection, language_model, source, texts
        from circuitcli.activations.collection import collect
        with tempfile.TemporaryDirectory() as folder:
            collect(language_model(), source(texts(*range(100))), collection(Path(folder), n_tokens=1000))
        print(peak_process_bytes())
    """
    peak = int(subprocess.run([sys.executable, "-c", work], check=True, capture_output=True).stdout)
    assert 0.4 < peak / estimates._LIBRARIES_BYTES < 1.5
