"""What a dry run says about memory."""

import subprocess
import sys

import pytest
import torch

from circuitcli.stages import estimates
from circuitcli.stages.estimates import memory, size


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
