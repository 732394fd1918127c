"""Freed memory is used again instead of being fetched from the system in every step."""

import os
import subprocess
import sys

import pytest

# The command sets the process up; then tensors of 40 MB come and go, and one that stays lies above the first of them.
STEPS_CHILD = """
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


# A tensor of 40 MB is freed while one that stays lies above it.
GAP_CHILD = """
import sys
from circuitcli.__main__ import main
sys.argv = ["circuit", "--version"]
main()
import torch
from circuitcli.allocator import give_back_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

below, above = torch.ones(10_000_000), torch.ones(10_000_000)
del below
before = held()
give_back_freed_memory()
print("bytes", before - held(), float(above[-1]))
"""


def last_line(child: str, **environment: str) -> list[str]:
    of_memory = ("MALLOC_", "GLIBC_TUNABLES", "THP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(of_memory)}
    done = subprocess.run(
        [sys.executable, "-c", child], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


def page_faults(**environment: str) -> int:
    return int(last_line(STEPS_CHILD, **environment)[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_tensors_of_a_step_take_the_memory_of_the_step_before_unless_the_user_has_set_something():
    # 20 steps with three tensors of 40 MB are 600,000 pages of 4 KB, or 1,200 of 2 MB.
    as_the_system_does = page_faults(MALLOC_TOP_PAD_="0")
    assert as_the_system_does > 1000
    assert page_faults() < as_the_system_does / 100


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left as they are")
def test_gaps_that_one_kind_of_work_leaves_are_given_back_before_another():
    _, n_bytes, above = last_line(GAP_CHILD)
    assert int(n_bytes) > 30_000_000 and float(above) == 1


PEAK_OF = "import torch; from circuitcli.training.memory import peak_memory_mib as p; print(p(torch.device('cpu')))"
LARGE_PARENT = f"""
import subprocess, sys
held = bytearray(b"1") * 1_000_000_000
print(subprocess.check_output([sys.executable, "-c", {PEAK_OF!r}], text=True))
"""


def test_a_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    alone, started = (
        float(subprocess.check_output([sys.executable, "-c", code], text=True)) for code in (PEAK_OF, LARGE_PARENT)
    )
    assert alone > 50 and started < alone + 200
