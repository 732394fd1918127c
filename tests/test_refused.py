"""What is refused changes nothing: no entry in run.json, no order, no pointer, no file."""

import os
from pathlib import Path

import pytest
import torch

from circuitcli import progress
from circuitcli.cli.app import run
from circuitcli.records import Stream
from circuitcli.runs import POINTER, Run
from circuitcli.settings.sources import load
from circuitcli.stages import collect, train
from circuitcli.stages.request import Request

TINY = {
    "data.layers": "1:2",
    "data.sites": "resid",
    "data.tokens": 600,
    "data.block_length": 32,
    "sae.k": 4,
    "sae.d_sae": 32,
    "train.batch_size": 64,
    "train.tokens": 128,
    "train.eval_tokens": 32,
    "train.loss_tokens": 0,
}
# With what the run was made.
SAME = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small run, and another one that was used last."""
    directory = tmp_path_factory.mktemp("refused")
    (directory / POINTER).write_text("other\n")
    for stage in (collect, train):
        made = Run(directory / "run")
        stage.run(Request(load(TINY).settings, made.stream() if stage is train else Stream(), made))
    return directory


def state(directory: Path) -> dict[str, bytes | None]:
    """All files and folders; who held the lock does not matter."""
    paths = (path for path in sorted(directory.rglob("*")) if path.name != "lock")
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


PROMPT = ["--prompt", "def f(x):"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["collect", "--model", "builtin:tiny", "--layers", "2"], 3),
        (["collect", "--model", "builtin:tiny", "--text", "missing.txt", "--force"], 3),
        (["collect", "--model", "builtin:tiny", "--layers", "90:", "--force"], 2),
        (["collect", "--model", "missing/model", "--force"], None),
        (["collect", "--model", "builtin:tiny", "--device", "cuda:9", "--force"], 4),
        (["train", *SAME, "--set", "sae.k=5"], 3),
        (["train", *SAME, "--set", "sae.k=500", "--force"], 2),
        (["train", *SAME, "--set", "train.batch_size=100000", "--force"], 3),
        (["train", *SAME, "--device", "cuda:9", "--force"], 4),
        (["train", *SAME, "--log", "trackio", "--force"], None),
        (["train", "--eval", "--sae", "missing"], 3),
        (["train", "--eval", "--device", "cuda:9"], 4),
        (["interp", "--device", "cuda:9"], 4),
        (["interp", "--sae", "missing"], 3),
        (["interp", "--feature", "resid.1/3"], 3),
        (["graph-grad", *PROMPT, "--layers", "90:"], None),
        (["graph-grad", *PROMPT, "--device", "cuda:9"], 4),
        (["graph-grad", *PROMPT, "--target", "two words"], 3),
        (["graph-naive", *PROMPT, "--sites", "attn"], None),
        (["validate", "--graph", "missing"], 3),
        (["validate", "--pin", "resid.1:999999", *PROMPT], None),
        (["render", "--graph", "missing"], 3),
        (["render", "--curves", "-o", "curves.json"], 2),
        (["inspect", "missing"], 3),
        (["train", "--set", "nonsense=1"], 2),
    ],
    ids=lambda value: " ".join(value[:1] + value[-3:]) if isinstance(value, list) else str(value),
)
def test_a_refused_command_changes_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], status: int | None
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = state(made)
    found = run([*words, "--run", "run"])
    progress.set_sink(None)
    error = capsys.readouterr().err
    assert found == status if status is not None else found in (2, 3, 4), error
    assert "bug in circuit" not in error and error.count("error:") == 1
    assert state(made) == before


def test_a_run_that_is_gone_stays_gone(made: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(made)
    stream = "".join(f"{line}\n" for line in ('{"kind":"run","path":"gone","model":"builtin:tiny","version":"0.1.0"}',))
    (made / "records.jsonl").write_text(stream)
    for command in ("train", "interp", "graph-grad", "graph-naive", "validate"):
        for words in ([command, "--run", "gone"], [command, "records.jsonl"]):
            assert run([*words, *(PROMPT if "graph" in command else ())]) == 3
            assert not Path("gone").exists() and "gone" in capsys.readouterr().err
    (made / "records.jsonl").unlink()
    assert os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() == 1
