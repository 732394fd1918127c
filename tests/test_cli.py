"""What single commands do with their options, and how they fail; in this process, with stages made for tests."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fake_stages
import numpy
import pytest
import torch
from cli_support import Outcome

from circuitcli import progress, stages
from circuitcli.cli.app import run
from circuitcli.errors import InputError, ToolError
from circuitcli.stages import graph_frozen

COLLECT = ("collect", "--model", "some/model", "--dtype", "float64")
RUN = Path("runs/some-model")


@dataclass(frozen=True)
class Commands:
    """Runs commands in this process."""

    capsys: pytest.CaptureFixture
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *words: str) -> Outcome:
        """What one command left."""
        status = run(words)
        return Outcome(status, *self.capsys.readouterr())

    def replace(self, stage: str, **functions: Callable[..., object]) -> None:
        """Put functions in the place of a stage's, until the test is over."""
        for name, function in functions.items():
            self.monkeypatch.setattr(getattr(stages, stage), name, function)


@pytest.fixture
def circuit(inside: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in a fresh directory, over the stages of `fake_stages`."""
    for name, module in fake_stages.modules().items():
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(stages, name, module, raising=False)
    logger = logging.getLogger("circuitcli")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setenv("TERM", "dumb")
    yield Commands(capsys, monkeypatch)
    progress.set_sink(None)


@pytest.fixture
def collected(circuit: Commands) -> Commands:
    """Commands in a directory in which `circuit collect` has run."""
    assert circuit(*COLLECT).status == 0
    return circuit


def raising(error: BaseException) -> Callable[[object], object]:
    def fails(request: object) -> object:
        raise error

    return fails


def test_later_commands_take_the_model_of_the_run(collected: Commands):
    assert collected("train").records[-1]["dtype"] == "float64"
    assert collected("train", "--model", "some/model", "--set", "model.dtype=float32").records[-1]["dtype"] == "float32"
    assert 'name = "some/model"  # run' in collected("train", "--print-settings").stdout


def test_another_model_than_the_runs_is_refused_and_both_are_named(
    collected: Commands, monkeypatch: pytest.MonkeyPatch
):
    outcome = collected("train", "--model", "other/model")
    assert outcome.status == 3
    assert "some/model" in outcome.errors[0] and "other/model (flag)" in outcome.errors[0]
    monkeypatch.setenv("CIRCUIT_MODEL__REVISION", "step1000")
    assert collected("train").status == 3


def test_a_dry_run_tells_and_makes_nothing(circuit: Commands):
    outcome = circuit(*COLLECT, "--dry-run")
    assert (outcome.status, outcome.stdout) == (0, "")
    assert "tokens to store" in outcome.stderr
    assert list(Path().iterdir()) == []


def test_an_estimate_is_of_frozen_graphs(collected: Commands, monkeypatch: pytest.MonkeyPatch):
    outcome = collected("graph-grad", "--estimate")
    assert (outcome.status, outcome.stdout) == (2, "") and outcome.errors[1] == "hint: add --frozen"
    monkeypatch.setattr(graph_frozen, "plan", lambda request: [("time", "about 3.0 s")])
    outcome = collected("graph-grad", "--frozen", "--prompt", "x", "--estimate")
    assert (outcome.status, outcome.stdout) == (0, "") and "about 3.0 s" in outcome.stderr


def test_quiet_silences_everything_but_errors(collected: Commands):
    assert collected("train", "-q").stderr == ""
    assert collected("train", "-q", "--model", "other").errors


def test_without_quiet_one_line_says_what_was_made(collected: Commands):
    assert collected("train").stderr.startswith("train: 1 sae in runs/some-model (")


def test_warnings_of_the_layers_below_are_one_line_each(collected: Commands):
    def warns(request: object) -> list:
        logging.getLogger("circuitcli.saes").warning("a bad\nmatch")
        return []

    collected.replace("train", run=warns)
    assert "warning: a bad match\n" in collected("train").stderr
    assert "bad" not in collected("train", "--quiet").stderr


def test_a_score_below_the_threshold_is_printed_and_exits_5(collected: Commands):
    outcome = collected("validate", "--at-least", "0.8")
    assert (outcome.status, outcome.kinds[-1]) == (5, "score")
    assert collected("validate", "--at-least", "0.5").status == 0


def test_running_a_stage_again_does_not_repeat_its_records(collected: Commands):
    assert collected("train").kinds == collected("train").kinds == ["run", "activations", "sae"]


def test_a_file_inside_a_run_belongs_to_it(collected: Commands, monkeypatch: pytest.MonkeyPatch):
    part = RUN / "graphs" / "part.jsonl"
    part.parent.mkdir()
    part.write_text('{"kind":"something"}\n')
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert collected("train", f"../{part}").kinds == ["something", "sae"]


def test_pictures_need_no_run_directory(circuit: Commands):
    Path("mailed.jsonl").write_text('{"kind":"something"}\n')
    assert circuit("render", "mailed.jsonl").kinds == ["something", "figure"]
    assert circuit("train", "mailed.jsonl").status == 3


def test_what_is_forced_is_told_to_the_stage(collected: Commands):
    asked = []
    collected.replace("train", run=lambda request: asked.append(request.force) or [])
    collected("train")
    collected("train", "-f")
    assert asked == [False, True]


def test_options_that_repeat_add_up_and_reach_their_settings(collected: Commands):
    asked = []
    collected.replace("validate", run=lambda request: asked.append(request.settings) or [])
    collected("validate", "--pin", "6:1,2", "--pin", "attn.0:3", "--set", "validate.samples=3")
    assert asked[0].validation.pin == ("6:1,2", "attn.0:3")
    assert asked[0].validation.samples == 3


def memory_error(allocate: Callable[[], object]) -> BaseException:
    """What a library says of what fits into no memory."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


def wrapped(error: BaseException) -> BaseException:
    """The error of a door that took the library's error for something else."""
    try:
        try:
            raise error
        except type(error):
            raise InputError("cannot read weights") from None
    except InputError as made:
        return made


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyError("x"), 1, "error: KeyError: 'x'"),
        (ValueError("two\nlines \x1b[2J"), 1, "error: ValueError: two lines \\x1b[2J"),
        (MemoryError(), 4, "error: out of memory"),
        (memory_error(lambda: torch.zeros(2**45)), 4, "error: out of memory"),
        (memory_error(lambda: torch.zeros(10**15, 10**5)), 4, "error: out of memory"),
        (memory_error(lambda: numpy.zeros(2**50)), 4, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 4, "error: out of memory"),
        (wrapped(MemoryError()), 4, "error: out of memory"),
        (OSError(12, "Cannot allocate memory", "shard"), 4, "error: out of memory"),
        (OSError(28, "No space left on device", "shard"), 3, "error: no space left on the disk: shard"),
        (OSError("Unable to write: No space left on device"), 3, "error: no space left on the disk"),
        (FileNotFoundError(2, "No such file", "absent"), 3, "error: no such file: absent"),
        (OSError("odd"), 1, "error: OSError: odd"),
        (InputError("no cache"), 3, "error: no cache"),
        (ToolError("no dot", hint="install\ngraphviz"), 4, "error: no dot"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (SystemExit(143), 143, "error: terminated"),
    ],
    ids=repr,
)
def test_failures_are_one_error_line_and_one_hint_line(
    error: BaseException, status: int, line: str, collected: Commands
):
    collected.replace("train", run=raising(error))
    outcome = collected("train", "-q")
    assert (outcome.status, outcome.stdout) == (status, "")
    first, *others = outcome.stderr.splitlines()
    assert first == line
    assert len(others) <= 1 and all(other.startswith("hint: ") for other in others)


def test_an_interrupted_command_with_force_says_how_to_go_on_without_it(collected: Commands):
    collected.replace("train", run=raising(KeyboardInterrupt()))
    assert collected("train").errors[1] == "hint: finished work is kept; the same command goes on from there"
    collected.monkeypatch.setattr(sys, "argv", ["circuit", "train", "--force"])
    hint = "hint: finished work is kept; the same command without --force goes on from there"
    assert collected("train", "--force").errors[1] == hint
    # Which keeps no part of a graph.
    collected.replace("graph_grad", run=raising(KeyboardInterrupt()))
    collected.monkeypatch.setattr(sys, "argv", ["circuit", "graph-grad"])
    assert "finds this graph anew" in collected("graph-grad", "--prompt", "for").errors[1]


def test_out_of_memory_on_a_device_names_the_batch_sizes(collected: Commands):
    collected.replace("train", run=raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA")))
    assert "batch_size" in collected("train").errors[1]


def test_only_debug_shows_a_traceback(collected: Commands):
    collected.replace("train", run=raising(KeyError("x")))
    assert "Traceback" not in collected("train").stderr
    outcome = collected("train", "--debug")
    assert "Traceback (most recent call last)" in outcome.stderr
    assert outcome.errors[0] == "error: KeyError: 'x'"


def test_settings_that_were_printed_can_be_read_back(collected: Commands):
    printed = collected(
        "train", "--set", "sae.k=7", "--set", 'graph.prompt=a "quoted"\ttext', "--print-settings"
    ).stdout
    Path("all.toml").write_text(printed)
    again = collected("train", "--config", "all.toml", "--print-settings").stdout
    values = [[line.partition("  #")[0] for line in text.splitlines()] for text in (printed, again)]
    assert values[0] == values[1]
    assert "k = 7  # all.toml" in again


def test_features_are_printed_whole_as_json_lines_for_programs(collected: Commands):
    collected.monkeypatch.setattr(stages, "interp", fake_interp(), raising=False)
    outcome = collected("interp", "--feature", "resid.0/1", "--feature", "resid.0/2")
    assert [record["id"] for record in outcome.records] == ["resid.0/1", "resid.0/2"]


def fake_interp() -> object:
    return type(
        "Stage", (), {"describe": staticmethod(lambda request, ids: [{"kind": "feature", "id": i} for i in ids])}
    )
