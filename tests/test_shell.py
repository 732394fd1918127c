"""`circuit` among other programs of a shell: full disks, closed and broken streams, terminals of any width."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import TIMEOUT_S, command_line, environment

from circuitcli.cli.app import run
from circuitcli.cli.console import Rows, console

# Commands that print without a run or a model.
PRINTING = (
    ("--version",),
    ("--help",),
    ("train", "--help"),
    ("collect", "--print-settings"),
    ("inspect", "gpt2-small-res-jb"),
)


class Broken(io.StringIO):
    """A stream that takes what is written and fails when it is to be sent on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        if self.getvalue():
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "no space left on the disk"), (errno.EIO, "input/output error")]
)
def test_a_stdout_that_takes_nothing_is_told_in_one_line(words, number, said, inside, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken(number))
        status = run(words)
    error = capsys.readouterr().err
    assert (status, error.count("error: "), error.count("hint: ")) == (3, 1, 1)
    assert said in error and "bug in circuit" not in error


@pytest.mark.parametrize("closed", ["<&- 2>&-", ">&-"])
def test_closed_streams_change_nothing_of_what_a_command_does(closed: str, tmp_path: Path):
    words = command_line(("collect", "--model", "some/model"))
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *words],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0
    assert (done.stdout == "") == (">&-" in closed.split()) and (done.stderr == "") == ("2>&-" in closed)
    # No file was opened under the number of stdout or stderr.
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert '"model": "some/model"' in written and "collect: 1" not in written


@pytest.mark.parametrize("columns", ["0", "1", "7", "39", "40", "-3", "x", ""])
def test_a_table_can_be_read_whatever_the_width_of_the_terminal_is_said_to_be(columns: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(console, "quiet", False)
    console.table(Rows(("hook point", "SAE"), [("resid.2", "topk"), ("resid.3", "relu")]))
    shown = capsys.readouterr().err
    for part in ("hook point", "resid.2", "topk", "resid.3", "relu"):
        assert part in shown


def test_a_directory_that_is_gone_or_has_no_utf8_name_is_told(inside: Path, capsys):
    places = [inside / "gone", Path(os.fsdecode(bytes(inside) + b"/\xff"))]
    for place in places:
        place.mkdir()
        os.chdir(place)
        if place.name == "gone":
            place.rmdir()
        assert run(["train"]) == 3
        error = capsys.readouterr().err
        assert "current directory" in error and error.count("\n") == 2
    os.chdir(inside)
