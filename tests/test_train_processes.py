"""``circuit train`` by two processes that a launcher started, against one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Outcome
from process_support import free_port, side_by_side
from safetensors.torch import load_file
from test_train_stage import OPTIONS, collected, request  # noqa: F401

from circuitcli.runs import Run
from circuitcli.stages import evaluate, train

# Without --multi_gpu accelerate starts a single process where it sees no two GPUs.
LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port",
}


def several(run: Path, *words: str) -> Outcome:
    """The same without a launcher: what both processes print, and the larger exit status."""
    assignments = [word for name, value in OPTIONS.items() for word in ("--set", f"{name}={value}")]
    command = ["-m", "circuitcli", words[0], *assignments, *words[1:], "--run", str(run)]
    outcomes = side_by_side(command, n=2, cwd=run.parent)
    texts = ["".join(getattr(outcome, name) for outcome in outcomes) for name in ("stdout", "stderr")]
    return Outcome(max(outcome.status for outcome in outcomes), *texts)


def launched(launcher: str, run: Path, *words: str) -> subprocess.CompletedProcess:
    """A command of circuit, twice, on a run. The parsers of launchers take ``--run`` for an option of theirs."""
    assignments = [word for name, value in OPTIONS.items() for word in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        *LAUNCHERS[launcher].split(),
        str(free_port()),
        "-m",
        "circuitcli",
        words[0],
        *assignments,
        *words[1:],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CIRCUIT_RUN": str(run)}
    return subprocess.run(
        command, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def alone(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run whose SAEs one process has trained."""
    path = Path(shutil.copytree(collected, tmp_path_factory.mktemp("alone") / "run"))
    train.run(request(path))
    return path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sharing_hook_points_gives_the_same_digests(launcher: str, collected: Path, alone: Path, tmp_path: Path):  # noqa: F811
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    done = launched(launcher, path, "train", "--set", "train.parallel=hooks", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"kind": "sae"') == 2
    one, two = ([r.digest for r in Run(where).stage_records("train")] for where in (alone, path))
    assert len(one) == 2 and one == two
    assert not (path / "saes" / "checkpoint").exists()


def test_sharing_rows_gives_nearly_the_same_sae(collected: Path, alone: Path, tmp_path: Path):  # noqa: F811
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    done = several(path, "train", "--json")
    assert done.status == 0, done.stderr
    for hook in ("attn.1", "resid.1"):
        one, two = (load_file(where / "saes" / hook / "weights.safetensors")["W_dec"] for where in (alone, path))
        assert float((one * two).sum(dim=1).mean()) > 0.99
    again = several(path, "train", "--json")
    assert again.status == 0 and again.stdout == done.stdout


def test_processes_share_out_the_measuring(alone: Path, tmp_path: Path):
    path = Path(shutil.copytree(alone, tmp_path / "run"))
    done = several(path, "train", "--eval", "--json")
    assert done.status == 0, done.stderr
    evaluate.run(request(alone))
    one, two = ((where / "reports" / "evaluate.json").read_text() for where in (alone, path))
    assert one == two and one.count('"hook"') == 2


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failure_is_one_error_line_of_two_processes(launcher: str, collected: Path):  # noqa: F811
    done = launched(launcher, collected, "train", "--set", "train.batch_size=129")
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size=129 cannot be shared out evenly to 2 processes") == 1


def test_a_command_that_works_in_one_process_says_so(collected: Path):  # noqa: F811
    other = several(collected, "interp")
    assert other.stderr.count("which runs in one") == 1
