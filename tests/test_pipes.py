"""Where records come from and how they are passed on; exit statuses of whole processes."""

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import TIMEOUT_S, circuit, command_line, environment, pipe

COLLECT = ("collect", "--model", "some/model", "--dtype", "float64")
RUN = "runs/some-model"

# What a stage does that a test interrupts: it shows that it has begun, and what it does when it is stopped.
SLOW = """
import time, pathlib
def slow(request):
    try:
        pathlib.Path("begun").touch()
        time.sleep(30)
    except BaseException as error:
        pathlib.Path("saved").write_text(type(error).__name__)
        raise
sys.modules["circuitcli.stages.train"].run = slow
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which `circuit collect` has run."""
    directory = tmp_path_factory.mktemp("template")
    assert circuit(*COLLECT, cwd=directory).status == 0
    return directory


@pytest.fixture
def collected(template: Path, tmp_path: Path) -> Path:
    """A copy of the template; its paths are relative."""
    return Path(shutil.copytree(template, tmp_path / "work"))


def test_a_run_begins_with_its_record_and_the_directory_is_named_after_the_model(tmp_path: Path):
    outcome = circuit(*COLLECT, cwd=tmp_path)
    assert outcome.kinds == ["run", "activations"]
    assert outcome.records[0]["path"] == RUN
    assert outcome.stdout.startswith('{"kind": "run"')


def test_a_pipe_passes_on_everything_and_appends(tmp_path: Path):
    outcome = pipe(COLLECT, ["train"], ["validate"], ["render"], cwd=tmp_path)
    assert outcome.status == 0
    assert outcome.kinds == ["run", "activations", "sae", "score", "figure"]
    assert outcome.records[2]["seen"] == ["run", "activations"]


def test_commands_without_a_pipe_work_on_the_run_used_last_and_print_what_a_pipe_would(tmp_path: Path):
    piped = pipe(COLLECT, ["train"], ["validate"], cwd=tmp_path)
    (other := tmp_path / "other").mkdir()
    steps = [circuit(*words, cwd=other) for words in (COLLECT, ["train"], ["validate"])]
    assert [step.status for step in steps] == [0, 0, 0]
    assert steps[-1].stdout == piped.stdout


def test_lines_are_forwarded_byte_for_byte(collected: Path):
    lines = [
        '{"kind": "run",  "path":"runs/some-model","model":"some/model","version":"9","later":[1,{"a":null}]}',
        '{"x":1.50,"kind":"of another version","text":"\\u00e9 é \u2028\x85 \\ud83d\\ude00"}',
    ]
    outcome = circuit("train", cwd=collected, stdin="\n".join(lines) + "\n\n")
    assert outcome.stdout.split("\n")[:2] == lines
    assert outcome.kinds == ["run", "of another version", "sae"]


def test_records_are_utf8_whatever_the_locale_says(collected: Path):
    line = '{"kind":"something","text":"é  "}'
    outcome = circuit("train", "--run", RUN, "-", cwd=collected, stdin=line, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert outcome.stdout.split("\n")[0] == line


def test_a_command_that_waits_for_a_silent_pipe_says_so_in_a_log(collected: Path):
    process = subprocess.Popen(
        command_line(["train"], "import circuitcli.cli.input as reading; reading.WAIT_S = 0.01"),
        cwd=collected,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stderr.readline().startswith("waiting for stdin")
    printed = process.communicate('{"kind":"something"}', timeout=TIMEOUT_S)[0]
    assert printed.startswith('{"kind":"something"}\n{"kind": "sae"')


def test_a_filter_in_the_middle_changes_what_the_next_command_sees(tmp_path: Path):
    keep_runs = "import sys; sys.stdout.writelines(line for line in sys.stdin if 'activations' not in line)"
    outcome = pipe(COLLECT, shlex.join([sys.executable, "-c", keep_runs]), ["train"], cwd=tmp_path)
    assert outcome.records[-1]["seen"] == ["run"]


def test_records_come_from_a_file_a_dash_or_a_named_run(collected: Path):
    printed = circuit("validate", cwd=collected).stdout
    (collected / "some.jsonl").write_text(printed)
    expected = circuit("render", cwd=collected, stdin=printed).stdout
    assert circuit("render", "some.jsonl", cwd=collected).stdout == expected
    assert circuit("render", "-", cwd=collected, stdin=printed).stdout == expected
    elsewhere = collected / "elsewhere"
    elsewhere.mkdir()
    named = circuit("render", "--run", f"../{RUN}", cwd=elsewhere, stdin="is not read")
    assert named.kinds == ["run", "activations", "figure"]
    assert circuit("render", cwd=elsewhere, CIRCUIT_RUN=f"../{RUN}").kinds == named.kinds


def test_when_a_command_fails_those_after_it_say_so_in_one_line_each(tmp_path: Path):
    outcome = pipe(["collect", "--tokens", "0"], ["train"], ["validate"], cwd=tmp_path)
    assert outcome.status == 3
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 3
    assert sum("stdin is empty" in line for line in errors) == 2


def test_damaged_records_are_refused_with_their_line(tmp_path: Path):
    outcome = circuit("train", cwd=tmp_path, stdin='{"kind":"run"\n')
    assert outcome.status == 3
    assert "stdin line 1" in outcome.errors[0]


def test_a_run_that_is_gone_is_named(tmp_path: Path):
    line = json.dumps({"kind": "run", "path": "runs/gone", "model": "m", "version": "1"})
    outcome = circuit("train", cwd=tmp_path, stdin=line)
    assert (outcome.status, outcome.errors[0]) == (3, "error: runs/gone is not a run directory")


def test_text_from_stdin_is_kept_in_the_run(tmp_path: Path):
    words = (*COLLECT, "--text", "-")
    outcome = circuit(*words, cwd=tmp_path, stdin="some\r\ntext é\n")
    assert outcome.records[1]["text"] == f"{RUN}/input.txt"
    assert (tmp_path / RUN / "input.txt").read_text(encoding="utf-8").splitlines() == ["some", "text é"]
    assert circuit(*words, cwd=tmp_path, stdin="some\r\ntext é\n").status == 0
    other = circuit(*words, cwd=tmp_path, stdin="other text")
    assert (other.status, "--force" in other.errors[1]) == (3, True)
    assert circuit(*words, "--force", cwd=tmp_path, stdin="other text").status == 0


@pytest.mark.parametrize(
    ("number", "status", "raised"), [(signal.SIGINT, 130, "KeyboardInterrupt"), (signal.SIGTERM, 143, "SystemExit")]
)
def test_a_stage_that_is_stopped_can_save_what_it_has(number: int, status: int, raised: str, collected: Path):
    process = subprocess.Popen(
        command_line(["train"], SLOW),
        cwd=collected,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not (collected / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    stderr = process.communicate(timeout=TIMEOUT_S)[1].decode()
    assert process.returncode == status
    assert (collected / "saved").read_text() == raised
    assert "Traceback" not in stderr


@pytest.mark.parametrize("words", [["render", "-o", "-"], ["--help"], ["train", "--print-settings"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_fault_to_talk_about(words: list[str], collected: Path):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        command_line(words),
        cwd=collected,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, b"")


def in_terminal(*words: str, cwd: Path, status: int = 0, **variables: str) -> str:
    """What a person sees who types a command."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command_line(words), cwd=cwd, env=environment(**variables), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 65_536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    assert process.wait(timeout=TIMEOUT_S) == status
    return seen.decode().replace("\r\n", "\n")


def test_people_get_a_table_and_the_next_command_instead_of_records(collected: Path):
    seen = in_terminal("train", cwd=collected, TERM="xterm")
    assert "resid.0" in seen and "next: circuit interp" in seen
    assert '"kind"' not in seen
    assert '{"kind": "sae"' in in_terminal("train", "--json", cwd=collected, TERM="xterm")


@pytest.mark.parametrize(
    ("words", "variables", "is_colored"),
    [
        ((), {"TERM": "xterm-256color"}, True),
        (("--no-color",), {"TERM": "xterm-256color"}, False),
        ((), {"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
    ],
)
def test_colours_can_be_turned_off(words: tuple[str, ...], variables: dict, is_colored: bool, collected: Path):
    error = in_terminal("train", "--model", "other", *words, status=3, cwd=collected, **variables)
    assert ("\x1b[1;31m" in error) == is_colored
    if words or variables.get("TERM") == "dumb":
        assert "\x1b[3" not in in_terminal("train", *words, cwd=collected, **variables)
