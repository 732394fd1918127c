"""The GPU's kernels, in Triton's interpreter, and on a GPU where there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuitcli.saes.fast import sparse

CHILD = Path(__file__).with_name("kernels_child.py")


@pytest.mark.parametrize("way", ["interpreted", "cuda"])
def test_the_kernels_sum_what_they_should(way: str):
    pytest.importorskip("triton")
    if way == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(CHILD)],
        env=os.environ | {"TRITON_INTERPRET": "1" if way == "interpreted" else "0"},
        cwd=CHILD.parent.parent,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50 and "skipped" not in done.stdout


def test_without_the_interpreter_the_cpu_does_not_use_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert sparse._kernels(torch.device("cpu")) is None


COMPILING = """
import itertools
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from circuitcli.saes.fast import kernels

shapes = {"ENTRIES": 8, "COLUMNS": 256}
forms = [
    (kernels._sums_kernel, {"IS_WEIGHTED": True}),
    (kernels._sums_kernel, {"IS_WEIGHTED": False}),
    (kernels._products_kernel, {}),
]
for capability, numbers, (kernel, more) in itertools.product([80, 90], ["*fp32", "*fp64"], forms):
    kinds = dict.fromkeys(("rows", "weights", "out", "left", "right"), numbers)
    kinds |= dict.fromkeys(("indices", "starts", "stops", "left_indices", "right_indices"), "*i64")
    fixed = shapes | more
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in kernel.arg_names}
    made = compile(ASTSource(kernel, signature, constexprs=fixed), target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 1000
    print(capability, numbers)
"""


def test_the_kernels_compile_for_gpus(tmp_path: Path):
    pytest.importorskip("triton")
    child = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILING],
        env=child | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=CHILD.parent.parent,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2 * 2 * 3
