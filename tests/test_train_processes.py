"""``circuit train`` by two processes that a launcher started, against one."""

import shutil
from pathlib import Path

import pytest
from cli_support import Outcome
from process_support import LAUNCHERS, launched, launched_anew, side_by_side
from safetensors.torch import load_file
from test_train_stage import OPTIONS, collected, request  # noqa: F401

from circuitcli.runs import Run
from circuitcli.stages import evaluate, train


def several(run: Path, *words: str) -> Outcome:
    """The same without a launcher: what both processes print, and the larger exit status."""
    command = ["-m", "circuitcli", words[0], *assignments(), *words[1:], "--run", str(run)]
    outcomes = side_by_side(command, n=2, cwd=run.parent)
    texts = ["".join(getattr(outcome, name) for outcome in outcomes) for name in ("stdout", "stderr")]
    return Outcome(max(outcome.status for outcome in outcomes), *texts)


def assignments() -> list[str]:
    return [word for name, value in OPTIONS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def alone(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run whose SAEs one process has trained."""
    path = Path(shutil.copytree(collected, tmp_path_factory.mktemp("alone") / "run"))
    train.run(request(path))
    return path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sharing_hook_points_gives_the_same_digests(launcher: str, collected: Path, alone: Path, tmp_path: Path):  # noqa: F811
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    done = launched(launcher, "train", *assignments(), "--set", "train.parallel=hooks", "--json", run=path)
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
    done = launched_anew(launcher, "train", *assignments(), "--set", "train.batch_size=129", run=collected)
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size=129 cannot be shared out evenly to 2 processes") == 1


def test_a_command_that_works_in_one_process_says_so(collected: Path):  # noqa: F811
    other = several(collected, "interp")
    assert other.stderr.count("which runs in one") == 1
