"""The script for hosts with a GPU, as far as a host without one can tell: `tests/on_gpu.sh` is to be right at first."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("on_gpu.sh")
TEXT = SCRIPT.read_text(encoding="utf-8")


def on_gpu(*words: str, device: str = "cpu") -> subprocess.CompletedProcess:
    environment = os.environ | {"CIRCUIT_GPU_DEVICE": device, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


def test_every_step_that_is_listed_is_there_and_limits_leave_time_for_all():
    listed = [line.split()[:2] for line in on_gpu("--list").stdout.splitlines()]
    names = [name for name, _ in listed]
    assert set(names) == set(re.findall(r"^step_(\w+)\(\)", TEXT, flags=re.MULTILINE)) and len(names) == len(set(names))
    assert all(10 <= int(limit) < 480 for _, limit in listed)
    total = re.search(r"^total_s=(\d+)$", TEXT, flags=re.MULTILINE)
    assert total is not None and int(total[1]) <= 480
    # What the steps name is there.
    for path in re.findall(r"tests/\w+\.py", TEXT):
        assert (SCRIPT.parents[1] / path).is_file()
    for module in re.findall(r"-m (tests[\w.]+)", TEXT):
        assert (SCRIPT.parents[1] / f"{module.replace('.', '/')}.py").is_file()


def test_a_rehearsal_tells_versions_and_goes_past_what_is_not_installed():
    done = on_gpu("versions", "sparsify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^versions +ok", done.stdout, flags=re.MULTILINE) and "  torch 2." in done.stdout
    assert re.search(r"^sparsify +(ok|skipped)", done.stdout, flags=re.MULTILINE)
    assert "0 of 2 steps failed" in done.stdout


def test_a_step_that_fails_is_told_and_does_not_keep_others_from_their_turn():
    done = on_gpu("versions", "graph", device="nowhere")
    assert done.returncode == 1
    assert re.search(r"^versions +FAILED", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^graph +FAILED +\d+ +there are no SAEs", done.stdout, flags=re.MULTILINE)
    assert "2 of 2 steps failed" in done.stdout and "nowhere" in done.stderr
    assert on_gpu("nonsense").returncode == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_shell_finds_nothing_wrong_with_it():
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
