"""Nothing that comes from a file, a model or another program steers the terminal or is taken for markup."""

import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import circuitcli
from circuitcli.cli import feature_view, inspection_view
from circuitcli.cli.bars import Bars
from circuitcli.cli.console import Printer, Rows, console, listen
from circuitcli.printable import json_printable
from circuitcli.records import InspectionRecord, ReleaseRecord, json_text
from circuitcli.settings.sources import load, to_toml

# A title for the window, a colour in eight bits, a bell, text that runs backwards, a carriage return, and markup.
EVIL = "\x1b]0;owned\x07\x9b31m\u202e\rx[red]y[/red][link=file:///etc]z[/link]:smile:\\[b]"
STEERING = ("\x1b]", "\x07", "\x9b", "\u202e", "\rx", "\x1b[31m")
# Embeddings, overrides and isolates.
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
RECORD = {"hook": EVIL, "architecture": EVIL, "d_in": 2, "d_sae": 3, "format": EVIL, "path": EVIL, "digest": EVIL}
FEATURE = {
    "id": EVIL,
    "label": EVIL,
    "density": 0.1,
    "quantiles": {EVIL: 1.0},
    "contexts": [{"tokens": [EVIL], "activations": [1.0], "peak": 0}],
    "promoted": [[EVIL, 1.0]],
}


def _progress() -> None:
    with Bars()(EVIL, 3, EVIL, 0) as advance:
        advance(note=EVIL)


def _logged() -> None:
    listen(debug=False)
    logging.getLogger("circuitcli.saes").warning("a warning of %s", EVIL)


PRINTED: dict[str, Callable[[], object]] = {
    "say": lambda: console.say(EVIL),
    "error": lambda: console.error(EVIL, EVIL),
    "table": lambda: console.table(Rows((EVIL, EVIL), [(EVIL, EVIL)], EVIL)),
    "log": _logged,
    "progress": _progress,
    "feature": lambda: console.view(feature_view.feature_text(FEATURE, marks=False)),
    "marked feature": lambda: console.view(feature_view.feature_text(FEATURE, marks=True)),
    "inspection": lambda: inspection_view.show(
        [InspectionRecord.model_construct(**RECORD, problems=(EVIL,), notes=[EVIL])]
    ),
    "release": lambda: inspection_view.show(
        [ReleaseRecord.model_construct(name=EVIL, id=EVIL, hook=EVIL, format=EVIL, repository=EVIL, path=EVIL)]
    ),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> pytest.CaptureFixture:
    """A wide terminal in colour, as far as the printer and rich can see."""
    # Of the class, as each phase of a test has its own stream.
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    for name, value in (("TERM", "xterm-256color"), ("FORCE_COLOR", "1"), ("COLUMNS", "2000")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr(console, "json", False)
    return capsys


@pytest.mark.parametrize("name", PRINTED)
def test_what_is_printed_cannot_steer_the_terminal_and_is_never_markup(name: str, terminal: pytest.CaptureFixture):
    PRINTED[name]()
    shown = "".join(terminal.readouterr())
    assert [code for code in STEERING if code in shown] == []
    assert "x[red]y[/red][link=file:" in shown


def test_colours_are_still_shown(terminal: pytest.CaptureFixture):
    PRINTED["feature"]()
    assert "\x1b[1m" in terminal.readouterr().out


def test_records_are_made_printable_on_a_terminal_and_unchanged_in_a_pipe(
    terminal: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    line = json.dumps({"kind": EVIL}, ensure_ascii=False)
    Printer().records([line])
    shown = terminal.readouterr().out
    assert shown.rstrip("\n").isprintable() and json.loads(shown) == json.loads(line)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: False)
    Printer().records([line])
    assert terminal.readouterr().out == line + "\n"


@given(
    st.recursive(
        st.none() | st.floats(allow_nan=False) | st.text(), lambda x: st.dictionaries(st.text(), x), max_leaves=4
    )
)
def test_printable_json_means_the_same(value: object):
    line = json_printable(json.dumps(value, ensure_ascii=False))
    assert line.isprintable() and json.loads(line) == value


def test_printed_settings_are_printable_and_read_back_whatever_their_file_is_called(tmp_path: Path):
    path = tmp_path / "a\x1b]0;x\x07\nseed = 7\n.toml"
    path.write_text("[graph]\nprompt = '\u202e\u0085'\n")
    printed = to_toml(load({}, config=[path], environment={}, directory=tmp_path))
    assert all(line.isprintable() for line in printed.split("\n"))
    (tmp_path / "again.toml").write_text(printed)
    again = load({}, config=[tmp_path / "again.toml"], environment={}, directory=tmp_path).settings
    assert (again.graph.prompt, again.seed) == ("\u202e\u0085", 0)


def test_a_message_without_end_is_cut_in_its_middle(capsys: pytest.CaptureFixture):
    console.error("begins " + "x" * 10**6 + " ends")
    shown = capsys.readouterr().err
    assert len(shown) < 1100 and "begins" in shown and shown.endswith("ends\n")


@given(st.text(), st.text(st.characters(min_codepoint=0x7F, max_codepoint=0x2070)))
def test_records_hold_no_code_that_steers_a_terminal_and_mean_the_same(before: str, text: str):
    content = {"kind": "x", "text": before + text}
    line = json_text(content)
    assert json.loads(line) == content
    assert not any(unicodedata.category(character) == "Cc" for character in line)
    assert not any(unicodedata.bidirectional(character) in DIRECTIONS for character in line)


def test_nothing_but_the_terminal_makes_a_rich_console():
    sources = Path(circuitcli.__file__).parent.rglob("*.py")
    made = [path.name for path in sources if re.search(r"\bConsole\(|\(Console\)|\brich\.print\b", path.read_text())]
    assert made == ["terminal.py"]
