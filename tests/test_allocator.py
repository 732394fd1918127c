"""Freed memory is used again instead of being fetched from the system in every step."""

import os
import subprocess
import sys

import pytest

# The command sets the process up; then tensors of 40 MB come and go, and one that stays lies above the first of them.
# Last, a tensor of 40 MB is freed while one that stays lies above it.
CHILD = """
import resource, sys
from circuitcli.__main__ import main
sys.argv = ["circuit", "--version"]
main()
import torch
from circuitcli.allocator import give_back_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

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
n_faults = faults() - before

below, above = torch.ones(10_000_000), torch.ones(10_000_000)
del below
before = held()
give_back_freed_memory()
print(n_faults, before - held(), float(above[-1]))
"""


def measured(**environment: str) -> tuple[int, int, float]:
    """Page faults of the steps, bytes that were given back, and a number of the tensor that stays."""
    of_memory = ("MALLOC_", "GLIBC_TUNABLES", "THP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(of_memory)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=inherited | environment, capture_output=True, text=True, check=True
    )
    n_faults, n_bytes, number = done.stdout.splitlines()[-1].split()
    return int(n_faults), int(n_bytes), float(number)


@pytest.fixture(scope="module")
def by_default() -> tuple[int, int, float]:
    return measured()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_tensors_of_a_step_take_the_memory_of_the_step_before_unless_the_user_has_set_something(by_default):
    # 20 steps with three tensors of 40 MB are 600,000 pages of 4 KB, or 1,200 of 2 MB.
    as_the_system_does, _, _ = measured(MALLOC_TOP_PAD_="0")
    assert as_the_system_does > 1000
    assert by_default[0] < as_the_system_does / 100


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_gaps_that_one_kind_of_work_leaves_are_given_back_before_another(by_default):
    _, n_bytes, number = by_default
    assert n_bytes > 30_000_000 and number == 1


PEAK_OF = """
import torch
from circuitcli.training.memory import peak_memory_mib

with open("/proc/self/statm") as file:
    print(int(file.read().split()[1]) * 4096 / 2**20, peak_memory_mib(torch.device("cpu")))
"""
LARGE_PARENT = f"""
import subprocess, sys
held = bytearray(b"1") * 1_000_000_000
print(subprocess.check_output([sys.executable, "-c", {PEAK_OF!r}], text=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has is read from /proc")
def test_a_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    now, peak = map(float, subprocess.check_output([sys.executable, "-c", LARGE_PARENT], text=True).split())
    assert 50 < now < peak + 1 and peak < now + 200
