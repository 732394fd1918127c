"""Whatever stands in a file of a run, in a file of records or on stdin: one error line, never a fault, at once."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import fake_stages
import pytest
from cli_support import Outcome

from circuitcli import progress
from circuitcli.cli import input as source
from circuitcli.cli.app import run
from circuitcli.records import Stream
from circuitcli.runs import Run, remember
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request

DEEP = 50_000
HEAD = b'{"kind": "graph", "name": "a", "method": "m", "metric": "kl", "prompt": "", "tokens": [], '
CONTENTS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "NUL": b"\0" * 100,
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"kind":' * DEEP,
    "digits": b'{"kind": ' + b"9" * 5000 + b"}",
    "more than 64 bits": b'{"format": 18446744073709551616}',
    "half a pair": b'{"kind": "\\ud800"}',
    "not finite": HEAD + b'"metric_clean": NaN}',
    "infinite": HEAD + b'"metric_clean": 1e999}',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "a text": b'"x"',
    "no kind": b"{}",
    "wrong kind": b'{"kind": 3}',
    "missing fields": b'{"kind": "run"}',
    "wrong types": b'{"kind": "run", "path": [], "model": {}, "version": 1}',
    "path out": b'{"kind": "run", "path": "a\\u0000b", "model": "m", "version": "1"}',
    "no settings": b'{"format": 1, "model": 3, "model_settings": [], "stages": []}',
    "no stage": b'{"format": 1, "stages": {"train": 1, "collect": {"state": "finished"}}}',
    "other settings": b'{"format": 1, "model": "m", "model_settings": {"model.nonsense": 1}}',
}
FILES = ("run.json", "records/collect.jsonl")
COMMANDS = (("train",), ("inspect",), ("render",), ("interp", "--feature", "resid.0/1"))


@pytest.fixture
def made(inside: Path) -> Iterator[Path]:
    """The run that is worked on; nothing but `circuit collect` has run."""
    made = Run(Path("made"))
    fake_stages.collect(Request(Settings(), Stream(), made))
    remember(made)
    yield inside / "made"
    progress.set_sink(None)


def _refused(words: tuple[str, ...], capsys: pytest.CaptureFixture, *, may_pass: bool = False) -> None:
    begun = time.monotonic()
    outcome = Outcome(run(words), *capsys.readouterr())
    assert outcome.status in ((0, 2, 3) if may_pass else (2, 3)), f"{words}: {outcome}"
    assert outcome.stderr.count("error: ") == (outcome.status != 0), f"{words}: {outcome}"
    assert "bug in circuit" not in outcome.stderr and len(outcome.stderr) < 1500, f"{words}: {outcome}"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("name", FILES)
def test_nonsense_in_a_runs_files_is_refused_by_every_command(name: str, made: Path, capsys):
    good = (made / name).read_bytes()
    for content in CONTENTS.values():
        (made / name).write_bytes(content)
        for words in COMMANDS[:2]:
            # What the records lack a listing of the run lacks too; an empty file holds no bad one.
            _refused(words, capsys, may_pass=words == ("inspect",))
    (made / name).write_bytes(good)


@pytest.mark.parametrize("name", [*FILES, ".circuit-run"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
def test_what_is_no_file_in_a_files_place_is_refused_at_once(name: str, kind: str, made: Path, capsys):
    path = made.parent / name if name.startswith(".") else made / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    for words in COMMANDS:
        _refused(words, capsys, may_pass=words == ("inspect",))


@pytest.mark.parametrize("words", [("render",), ("train",), ("validate", "--graph"), ("graph-naive", "--extend")])
def test_nonsense_in_a_file_of_records_is_refused(words: tuple[str, ...], made: Path, capsys):
    for content in CONTENTS.values():
        Path("records.jsonl").write_bytes(content)
        _refused((*words, "records.jsonl", "--run", "made"), capsys)


def test_records_without_end_are_refused_before_they_fill_the_memory(made: Path, capsys, monkeypatch):
    monkeypatch.setattr(source, "MOST_BYTES", 2**16)
    reader, writer = os.pipe()
    os.write(writer, b'{"kind": "x"}\n' * 2000)
    try:
        # The pipe is never closed: what is read of it is enough.
        _refused(("render", f"/dev/fd/{reader}"), capsys)
    finally:
        os.close(reader)
        os.close(writer)


def test_nonsense_in_a_file_of_settings_is_refused(inside: Path, capsys):
    for content in CONTENTS.values():
        Path("circuit.toml").write_bytes(content or b"a")
        _refused(("collect",), capsys)
        Path("circuit.toml").unlink()
        Path("other.toml").write_bytes(content or b"a")
        _refused(("train", "--config", "other.toml"), capsys)
