"""Trackers beside metrics.jsonl: each step once, resumed runs go on, nothing on stdout, missing packages are named."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training_fakes import planted, trainer

from circuitcli.errors import ExitStatus, SettingsError, ToolError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.sources import load
from circuitcli.training.log import Line, MetricsLog, read_metrics
from circuitcli.training.trackers.tracker import TrackedRun, check_trackers, trackers

HOOKS = (HookPoint(0, "attn"), HookPoint(1, "resid"))


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all scalars in the event files of one folder, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


class Recorded:
    """A tracker that keeps what it got."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, numbers: Any) -> None:
        assert list(numbers) == [str(hook) for hook in HOOKS]
        self.steps.append(step)

    def close(self, *, failed: bool) -> None:
        pass


def test_tensorboard_shows_the_numbers_of_the_metrics_file(tmp_path: Path) -> None:
    rows = {hook: planted(500)[0] for hook in HOOKS}
    made = trainer(tmp_path, rows, n_steps=9)
    with trackers(["tensorboard"], TrackedRun(tmp_path, "name", starts_over=True)) as opened:
        made.trackers = opened
        made.run()
    for hook in HOOKS:
        shown = events(tmp_path / "tensorboard" / str(hook))
        lines = read_metrics(tmp_path / str(hook) / "metrics.jsonl")
        assert len(lines) == 9 and set(shown) == set(lines[0]) - {"step"}
        for name, points in shown.items():
            assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]


def test_resumed_training_goes_on_in_the_same_event_files_and_a_new_one_removes_them(tmp_path: Path) -> None:
    def log(steps: range, *, starts_over: bool) -> None:
        with trackers(["tensorboard"], TrackedRun(tmp_path, "name", starts_over)) as opened:
            for step in steps:
                opened[0].log(step, {"resid.1": {"fvu": float(step)}})

    log(range(1, 4), starts_over=True)
    log(range(4, 6), starts_over=False)
    assert events(tmp_path / "tensorboard" / "resid.1")["fvu"] == [(step, step) for step in range(1, 6)]
    log(range(1, 3), starts_over=True)
    assert events(tmp_path / "tensorboard" / "resid.1")["fvu"] == [(1, 1.0), (2, 2.0)]


def test_steps_that_a_killed_process_logged_are_not_logged_again(tmp_path: Path) -> None:
    rows = {hook: planted(500)[0] for hook in HOOKS}
    made = trainer(tmp_path, rows, n_steps=12, checkpoint_steps=5)
    first = made.trackers = (Recorded(),)
    whole = made.batches.from_step
    # Killed after 8 steps: the checkpoint is of step 5, the lines of steps 6 to 8 are written.
    made.batches.from_step = lambda step: (batch for index, batch in enumerate(whole(step)) if index < 8 or kill())  # type: ignore[method-assign]

    def kill() -> bool:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        made.run()
    again = trainer(tmp_path, rows, n_steps=12, checkpoint_steps=5)
    second = again.trackers = (Recorded(),)
    again.run()
    assert again.checkpoints.step() == 12 and first[0].steps == list(range(1, 9))
    assert second[0].steps == list(range(9, 13))
    assert [line["step"] for line in read_metrics(tmp_path / "resid.1" / "metrics.jsonl")] == list(range(1, 13))


class Library(ModuleType):
    """A stand-in for a tracker's package that records how it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.mode, self.has_login = "offline", True

    def init(self, *positional: Any, **named: Any) -> "Library":
        print("* talk on stdout")
        self.calls.append(("init", {"project": positional[0] if positional else None} | named))
        return self

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.calls.append(("log", (step, numbers)))

    def finish(self, **named: Any) -> None:
        self.calls.append(("finish", named))

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return self.has_login

    def Settings(self, **named: Any) -> dict[str, Any]:
        return named


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library(request.param)
    made.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def log_with(library: Library, run: TrackedRun) -> None:
    with trackers([library.__name__], run) as opened:
        opened[0].log(3, {"resid.1": {"fvu": 0.5}, "attn.1": {"fvu": 0.25}})


@pytest.mark.parametrize("library", ["trackio", "wandb"], indirect=True)
def test_others_get_one_run_with_prefixed_names(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    log_with(library, TrackedRun(tmp_path, "gpt2-1234", starts_over=True, settings={"sae.k": 32}))
    names, arguments = zip(*library.calls, strict=True)
    assert names == ("init", "log", "finish")
    assert arguments[0]["name"] == "gpt2-1234" and arguments[0]["config"] == {"sae.k": 32}
    assert arguments[0]["project"] == "circuit"
    assert arguments[1] == (3, {"resid.1/fvu": 0.5, "attn.1/fvu": 0.25})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("library", ["trackio", "wandb"], indirect=True)
def test_a_resumed_training_goes_on_in_its_run(library: Library, tmp_path: Path) -> None:
    log_with(library, TrackedRun(tmp_path, "gpt2-1234", starts_over=False))
    assert library.calls[0][1]["resume"] == "allow"
    if library.__name__ == "wandb":
        assert library.calls[0][1]["id"] == "gpt2-1234"


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_wandb_is_told_that_a_training_failed(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with trackers(["wandb"], TrackedRun(tmp_path, "name", starts_over=True)):
            raise ZeroDivisionError
    assert library.calls[-1] == ("finish", {"exit_code": 1})


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_wandb_without_a_login_is_an_error_and_asks_nothing(library: Library, tmp_path: Path) -> None:
    library.mode, library.has_login = "online", False
    with pytest.raises(ToolError, match="no login") as caught:
        log_with(library, TrackedRun(tmp_path, "name", starts_over=True))
    assert "WANDB_MODE=offline" in caught.value.hint and not library.calls


@pytest.mark.parametrize("library", ["trackio", "wandb"], indirect=True)
def test_a_library_that_fails_is_reported_in_one_line(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise library.errors.Error("no route\nto the service")

    monkeypatch.setattr(library, "init", refuse)
    with pytest.raises(ToolError, match=rf"{library.__name__} cannot begin a run: no route$"):
        log_with(library, TrackedRun(tmp_path, "name", starts_over=True))


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_missing_package_is_named_with_the_extra_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitcli.training.trackers.tracker.find_spec", lambda _: None)
    with pytest.raises(ToolError, match=f"needs the package {name}") as caught:
        check_trackers([name])
    assert caught.value.hint == f"pip install '.[{name}]'" and caught.value.exit_status == ExitStatus.TOOL


REAL = """
import sys
from pathlib import Path
from circuitcli.training.trackers.tracker import TrackedRun, trackers
for steps, starts_over in ((range(1, 4), True), (range(4, 6), False)):
    with trackers([sys.argv[1]], TrackedRun(Path(sys.argv[2]), "a-name", starts_over, {"sae.k": 3})) as opened:
        for step in steps:
            opened[0].log(step, {"resid.1": {"fvu": 1 / step}})
"""


def run_real(name: str, directory: Path) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    environment = os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(directory / "db"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REAL, name, str(directory)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_real_trackio_keeps_each_step_once_in_one_run(tmp_path: Path) -> None:
    run_real("trackio", tmp_path)
    import sqlite3

    with sqlite3.connect(tmp_path / "db" / "circuit.db") as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by step").fetchall()
    assert len({row[0] for row in rows}) == 1 and {row[1] for row in rows} == {"a-name"}
    assert [(row[2], json.loads(row[3])) for row in rows] == [(step, {"resid.1/fvu": 1 / step}) for step in range(1, 6)]


def test_real_wandb_writes_offline_runs_of_one_id(tmp_path: Path) -> None:
    run_real("wandb", tmp_path)
    found = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in found] == ["run-a-name.wandb"] * 2


def test_log_takes_several_names_and_refuses_others() -> None:
    assert load({"train.log": "tensorboard, wandb"}).settings.train.log == ("tensorboard", "wandb")
    with pytest.raises(SettingsError, match=r"train\.log"):
        load({"train.log": "mlflow"})


def test_parts_of_the_loss_are_numbers_of_the_line(tmp_path: Path) -> None:
    line = Line(3, 96, 0.5, 0.4, 8.0, 0.0, 1e-3, 10.0, 99.0, parts={"fvu": 0.4, "auxk": 0.1})
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(line.numbers())
    read = read_metrics(log.path)
    assert read == [line.numbers()] and read[0]["loss_auxk"] == 0.1 and "parts" not in read[0]


def test_a_line_says_where_in_the_training_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks tokens"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"step": 1, "loss": 2.0})


def test_rewinding_tells_the_last_step_that_was_there(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.rewind(0) == 0
    for step in (1, 2, 3):
        log.append({"step": step, "tokens": 10 * step})
    assert log.rewind(2) == 3
    assert log.rewind(2) == 2 and log.rewind(0) == 0


def test_reading_metrics_needs_no_torch() -> None:
    code = "import sys; import circuitcli.training.log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
