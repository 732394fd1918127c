"""Two processes that train together against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_support import free_port
from ranks_child import HOOKS, make
from safetensors.torch import load_file

FILES = [f"{hook}.safetensors" for hook in HOOKS]


def run_two(directory: Path, architecture: str, mode: str) -> None:
    """Both processes, to their end."""
    port = free_port()
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    script = str(Path(__file__).parent / "ranks_child.py")
    children = [
        subprocess.Popen(
            [sys.executable, script, str(directory), architecture, mode],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            _, told = child.communicate(timeout=120)
            assert child.returncode == 0, told
    finally:
        for child in children:
            child.kill()


def states(directory: Path) -> list[dict[str, torch.Tensor]]:
    (last,) = (directory / "checkpoint").iterdir()
    return [load_file(last / name) for name in FILES]


def lines(directory: Path) -> list[dict[str, float]]:
    texts = [(directory / str(hook) / "metrics.jsonl").read_text() for hook in HOOKS]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("tokens_per_s", "memory_mib")} for line in found
    ]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "gated"])
def test_sharing_the_rows_of_batches_gives_the_sae_of_one_process(architecture: str, tmp_path: Path):
    make(tmp_path / "one", architecture, "data").run()
    run_two(tmp_path / "two", architecture, "data")
    for one, two in zip(states(tmp_path / "one"), states(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys() and one["best_step"] == two["best_step"] > 0
        for name, tensor in one.items():
            # Sums in another order, followed through Adam, which divides small differences by small numbers.
            scale = max(1e-6, float(tensor.double().abs().max()))
            assert float((tensor.double() - two[name].double()).abs().max()) <= 2e-3 * scale, name
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-5)


def test_sharing_the_hook_points_gives_the_bits_of_one_process(tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make(tmp_path / "one", "topk", "hooks").run()
    finally:
        torch.set_num_threads(before)
    run_two(tmp_path / "two", "topk", "hooks")
    for one, two in zip(states(tmp_path / "one"), states(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
