"""Two processes that train together against one."""

import json
from pathlib import Path

import pytest
import torch
from process_support import side_by_side
from ranks_child import make
from safetensors.torch import load_file

PROGRAM = "import sys, ranks_child; ranks_child.run(*sys.argv[1:])"


def run_two(directory: Path, architecture: str, mode: str) -> None:
    """Both processes, to their end."""
    for outcome in side_by_side(["-c", PROGRAM, str(directory), architecture, mode], n=2, cwd=directory.parent):
        assert outcome.status == 0, outcome.stderr


def states(directory: Path) -> list[dict[str, torch.Tensor]]:
    (last,) = (directory / "checkpoint").iterdir()
    return [load_file(path) for path in sorted(last.glob("*.safetensors"))]


def lines(directory: Path) -> list[dict[str, float]]:
    texts = [path.read_text() for path in sorted(directory.glob("*/metrics.jsonl"))]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("tokens_per_s", "memory_mib")} for line in found
    ]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "gated", "clt"])
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
