"""Freed memory is used again instead of being fetched from the system in every step."""

import os
import subprocess
import sys

import pytest

# The command sets the process up; then tensors of 40 MB come and go, and one that stays lies above the first of them.
CHILD = """
import resource, sys
from circuitcli.__main__ import main
sys.argv = ["circuit", "--version"]
main()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    a = torch.ones(10_000_000)
    b = a + 1
    return float((a * b)[-1])

step()
kept = torch.ones(100_000)
step()
before = faults()
for _ in range(20):
    step()
print("faults", faults() - before)
"""


def page_faults(**environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_tensors_of_a_step_take_the_memory_of_the_step_before_unless_the_user_has_set_something():
    # 20 steps with three tensors of 40 MB are 600,000 pages of 4 KB, or 1,200 of 2 MB.
    as_the_system_does = page_faults(MALLOC_TOP_PAD_="0")
    assert as_the_system_does > 1000
    assert page_faults() < as_the_system_does / 100
