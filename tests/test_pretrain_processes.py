"""Pretraining in processes of its own: two that share the windows of every batch, and one that is killed."""

import json
import os
from pathlib import Path

import nursery
import pytest
from cli_support import TIMEOUT_S, environment, here
from process_support import side_by_side
from safetensors.torch import load_file

WORDS = ("--tokenizer", "characters", "--steps", "12", "--checkpoints", "log:4", "--json")
SETS = {
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 12,
    "context_length": 16,
    "batch_size": 4,
    "warmup_steps": 3,
    "evaluate_every": 3,
    "save_every": 4,
    "accumulation": 2,
    "dropout": 0,
}
RUN = "import sys\nfrom circuitcli.__main__ import main\nsys.exit(main())"
# The kill comes when the ninth step is done, and the state of the eighth on the disk.
KILLED = f"""
import os, signal
from circuitcli.pretraining.optimiser import ModelOptimiser
learn = ModelOptimiser.learn
def learn_and_die(self, batches, *, step, seed):
    made = learn(self, batches, step=step, seed=seed)
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return made
ModelOptimiser.learn = learn_and_die
{RUN}"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{number} green bottles, standing on the wall.\n" for number in range(200)))
    return path


def words(text: Path, output: Path) -> list[str]:
    sets = [word for name, value in SETS.items() for word in ("--set", f"pretrain.{name}={value}")]
    return ["pretrain", "--text", str(text), "--output", str(output), *WORDS, *sets]


@pytest.fixture(scope="module")
def whole(text: Path) -> Path:
    """The model of one process that nothing broke off."""
    output = text.parent / "whole"
    outcome = here(*words(text, output), cwd=text.parent)
    assert outcome.status == 0, outcome.stderr
    return output


def metrics(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "training/metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in ("tokens_per_s", "memory_mib")} for line in lines]


def test_two_processes_that_share_the_windows_have_the_losses_and_the_weights_of_one(
    text: Path, whole: Path, tmp_path: Path
):
    outcomes = side_by_side(["-c", RUN, *words(text, tmp_path / "two")], n=2, cwd=tmp_path)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes[0].stderr + outcomes[1].stderr
    assert outcomes[1].stdout == ""
    assert outcomes[0].kinds == ["model"] + ["checkpoint"] * 4
    for one, two in zip(metrics(whole), metrics(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    expected = load_file(whole / "model.safetensors")
    for name, tensor in load_file(tmp_path / "two/model.safetensors").items():
        # Sums in another order, which Adam divides by small numbers.
        assert float((tensor - expected[name]).abs().max()) < 2e-4, name


def test_a_killed_process_goes_on_to_the_bits_of_one_that_was_not(text: Path, whole: Path, tmp_path: Path):
    output = tmp_path / "killed"
    with Path(os.devnull).open("r+b") as nothing:
        streams = [nothing.fileno()] * 3
        started = nursery.start(
            ["-c", KILLED, *words(text, output)], cwd=tmp_path, env=environment(OMP_NUM_THREADS="1"), streams=streams
        )
        assert started.wait(TIMEOUT_S) == -9
    (state,) = (output / "training/state").iterdir()
    assert state.name == "step-00000008" and not (output / "config.json").exists()
    outcome = here(*words(text, output), cwd=tmp_path)
    assert outcome.status == 0, outcome.stderr
    assert metrics(output) == metrics(whole)
    for path in ("model.safetensors", "tokenizer.json", "checkpoints/step4/model.safetensors"):
        assert (output / path).read_bytes() == (whole / path).read_bytes()
