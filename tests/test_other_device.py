"""Every command on a device that is not the CPU: the same numbers, and no tensor left behind on the wrong one.

The device is a stand-in, or the real one that TESTS_DEVICE names (tests/on_gpu.sh). That adds up in another order, and
trains in TF32: its numbers are compared less closely, and of long lists a few may differ, where two were nearly equal.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nursery
import pytest
import torch
from cli_support import ROOT, TESTS, TIMEOUT_S, environment

from circuitcli.activations.cache import ActivationCache
from circuitcli.hookpoints import HookPoint

DEVICE = os.environ.get("TESTS_DEVICE", "other")
IS_STAND_IN = DEVICE == "other"
# How many times as far apart numbers may be, and which share of a list may be further apart.
SLACK, STRAY = (1, 0.0) if IS_STAND_IN else (4, 0.02)
PROMPT = "    def __init__(self, name): self.name ="
SETTINGS = ["--set", "sae.d_sae=128", "--set", "sae.k=8", "--set", "train.tokens=8192", "--set", "train.batch_size=512"]
MAKING = [
    ["collect", "--layers", "2:4", "--sites", "resid,mlp_in,mlp", "--tokens", "9000"],
    ["train", *SETTINGS],
]
# Of the run that the CPU made, so that SAEs differ in nothing.
READING = [
    ["train", "--eval"],
    ["interp"],
    ["graph-grad", "--prompt", PROMPT, "--down", "6", "--up", "3"],
    [
        *["graph-grad", "--prompt", PROMPT, "--down", "6", "--up", "3", "--method", "atp", "--name", "atp"],
        *["--heads", "--qk", "3.1:7,2"],
    ],
    ["graph-grad", "--prompt", PROMPT, "--frozen", "--heads", "--check-edges", "3", "--name", "frozen"],
    ["graph-naive", "--prompt", PROMPT, "--thin", "0.5", "--name", "naive"],
    ["validate", "--graph", "circuit"],
    ["inspect", "saes/resid.2"],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs made and read on the CPU, made on the other device, and made on the CPU but read on the other device."""
    folder = tmp_path_factory.mktemp("devices")
    _circuit(MAKING, device="cpu", run=folder / "cpu")
    shutil.copytree(folder / "cpu", folder / "read")
    _circuit(MAKING, device=DEVICE, run=folder / "other")
    _circuit(READING, device="cpu", run=folder / "cpu")
    _circuit(READING, device=DEVICE, run=folder / "read")
    return {name: folder / name for name in ("cpu", "other", "read")}


def _circuit(commands: list[list[str]], *, device: str, run: Path) -> None:
    """Run commands one after the other in one process; the other device has no float64, as Apple's GPUs."""
    run.mkdir(exist_ok=True)
    words = [word for command in commands for word in (*command, "--device", device, "--run", ".", "+")]
    program = ["-c", "import sys, other_device; sys.exit(other_device.main(sys.argv[1:]))", *words[:-1]]
    variables = environment(OTHER_DEVICE_FLOAT64="0", **({} if IS_STAND_IN else {"TESTS_DEVICE": DEVICE}))
    run_program = nursery.run if IS_STAND_IN else nursery.run_anew
    done = run_program(program, cwd=run, env=variables, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_cache_is_the_same(runs: dict[str, Path]):
    hooks = [HookPoint(layer, site) for layer in (2, 3) for site in ("resid", "mlp_in", "mlp")]
    here, there = (ActivationCache(runs[name] / "activations", hooks) for name in ("cpu", "other"))
    assert here.n_tokens == there.n_tokens > 8000
    for hook in hooks:
        one, other = (cache.rows(hook, 0, here.n_tokens).float() for cache in (here, there))
        assert torch.equal(one, other) if IS_STAND_IN else (one - other).norm() < 1e-3 * one.norm()
        assert here.mean_square_norm(hook) == pytest.approx(there.mean_square_norm(hook), rel=1e-6 * SLACK)


def test_training_comes_to_the_same_quality(runs: dict[str, Path]):
    here, there = (records(runs[name] / "records/train.jsonl") for name in ("cpu", "other"))
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert one["hook"] == other["hook"]
        assert one["explained_variance"] == pytest.approx(other["explained_variance"], abs=0.01 * SLACK)


def test_measures_of_the_same_saes_agree(runs: dict[str, Path]):
    here, there = (json.loads((runs[name] / "reports/evaluate.json").read_text()) for name in ("cpu", "read"))
    for one, other in zip(here["saes"], there["saes"], strict=True):
        for name in ("l0", "mse", "explained_variance", "cosine", "ce_spliced", "ce_mean", "kl_spliced"):
            assert one[name] == pytest.approx(other[name], rel=1e-4 * SLACK, abs=1e-6 * SLACK), name


def test_features_agree(runs: dict[str, Path]):
    for file in sorted((runs["cpu"] / "features").glob("*.jsonl")):
        ones, others = (
            {line["id"]: line for line in records(runs[name] / "features" / file.name)} for name in ("cpu", "read")
        )
        assert len(ones.keys() ^ others.keys()) <= STRAY * len(ones) and len(ones) > 20
        different = {
            name
            for name in ones.keys() & others.keys()
            if ones[name]["max"] != pytest.approx(others[name]["max"], rel=1e-3 * SLACK)
            or ones[name]["density"] != pytest.approx(others[name]["density"], abs=2e-3 * SLACK)
        }
        assert len(different) <= STRAY * len(ones), different


@pytest.mark.parametrize("name", ["circuit", "atp", "frozen", "naive"])
def test_circuits_agree(runs: dict[str, Path], name: str):
    here, there = (records(runs[folder] / f"graphs/{name}.jsonl") for folder in ("cpu", "read"))
    for kind, number in (("node", "effect"), ("edge", "weight")):
        ones, others = (
            {key(part): part[number] for part in parts if part["kind"] == kind and part.get(number) is not None}
            for parts in (here, there)
        )
        assert len(ones.keys() & others.keys()) >= 0.95 * len(ones) > 5
        least = 1e-3 * SLACK * max(map(abs, ones.values()))
        different = {
            place
            for place in ones.keys() & others.keys()
            if ones[place] != pytest.approx(others[place], rel=1e-2 * SLACK, abs=least)
        }
        assert len(different) <= STRAY * len(ones), different


def test_parts_of_edges_and_scores_agree(runs: dict[str, Path]):
    for name in ("atp", "frozen"):
        here, there = (
            {
                key(part): part.get("heads")
                for part in records(runs[folder] / f"graphs/{name}.jsonl")
                if part["kind"] == "edge"
            }
            for folder in ("cpu", "read")
        )
        parts = [(here[edge], there[edge]) for edge in here.keys() & there.keys() if here[edge]]
        assert parts
        least = 1e-3 * SLACK * max(abs(value) for one, _ in parts for value in one.values())
        for one, other in parts:
            # What is just among the strongest heads in one may be just beside them in the other.
            for head in (one.keys() & other.keys()) - {"others"}:
                assert one[head] == pytest.approx(other[head], rel=1e-2 * SLACK, abs=least)
    here, there = (
        next(part for part in records(runs[folder] / "graphs/atp.jsonl") if part["kind"] == "attention")
        for folder in ("cpu", "read")
    )
    assert here["score"] == pytest.approx(there["score"], rel=1e-3 * SLACK)


def key(part: dict) -> tuple:
    return (part["id"],) if part["kind"] == "node" else (part["source"], part["target"])


def test_a_circuit_is_as_faithful(runs: dict[str, Path]):
    here, there = (
        {
            score["name"]: score["value"]
            for score in json.loads((runs[name] / "reports/circuit.json").read_text())["scores"]
        }
        for name in ("cpu", "read")
    )
    assert {"faithfulness", "completeness"} <= here.keys()
    for name, value in here.items():
        assert value == pytest.approx(there[name], abs=2e-3 * SLACK), name


def test_all_architectures_learn_there():
    """In one process: Triton decides at its first import that its interpreter is wanted, so the kernels come first."""
    ways = ["kernels", "dense"] if find_spec("triton") else ["dense"]
    # A real GPU has no other way than its kernels.
    variables = {"OTHER_DEVICE_WAYS": ",".join(ways), "TRITON_INTERPRET": "1"} if IS_STAND_IN else {}
    child = TESTS / "other_device_child.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(child)],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 11 * (len(ways) if IS_STAND_IN else 1)
    assert "skipped" not in done.stdout or not IS_STAND_IN
