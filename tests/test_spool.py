"""Text from stdin is kept in the run as it came, in bounded memory, and the same text is found again."""

import io
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from circuitcli.cli import spool as spooling
from circuitcli.cli.spool import spool
from circuitcli.errors import InputError
from circuitcli.runs import Run


class Stdin:
    """Bytes as a pipe gives them; counts those that were read."""

    def __init__(self, pieces):
        self._pieces, self.n_read = iter(pieces), 0

    def read(self, n):
        piece = next(self._pieces, b"")
        assert len(piece) <= n
        self.n_read += len(piece)
        return piece


def kept(monkeypatch, run, pieces, *, force=False, n_tokens=10**6):
    stdin = Stdin(pieces)
    monkeypatch.setattr(spooling, "tell_what_is_waited_for", lambda _: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    return spool(run, force=force, n_tokens=n_tokens).read_bytes(), stdin.n_read


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_what_came_is_kept_byte_for_byte_and_the_same_again_is_fine(monkeypatch, run):
    text = "a\r\n\n é\ufeff\n".encode()
    pieces = [text[at : at + 1] for at in range(len(text))]
    assert kept(monkeypatch, run, pieces)[0] == text
    assert kept(monkeypatch, run, [text])[0] == text
    assert kept(monkeypatch, run, [b"other"], force=True)[0] == b"other"


@pytest.mark.parametrize("other", [b"one twp", b"one tw", b"one two!", b"one\n two"])
def test_another_text_is_refused_and_the_first_one_stays(monkeypatch, run, other):
    kept(monkeypatch, run, [b"one two"])
    with pytest.raises(InputError, match="another text"):
        kept(monkeypatch, run, [other])
    assert kept(monkeypatch, run, [b"one two"])[0] == b"one two"


def test_another_text_is_told_before_all_of_it_was_read(monkeypatch, run):
    kept(monkeypatch, run, [b"one"])
    stdin = Stdin([b"two"] * 1000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    with pytest.raises(InputError):
        spool(run, force=False, n_tokens=10**6)
    assert stdin.n_read <= 6


@pytest.mark.parametrize("pieces", [[], [b" \n", b"\t\n"]])
def test_stdin_without_text_leaves_nothing(monkeypatch, run, pieces):
    with pytest.raises(InputError, match="no text"):
        kept(monkeypatch, run, pieces)
    assert not run.path.exists()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(("content", "at"), [(b"ab\xc3\xa9\xff", 4), (b"ab\xe2\x82", 2), (b"ab \xe2\x82x", 3)])
def test_bytes_that_are_no_utf8_are_named_by_their_place_wherever_the_pipe_cuts(monkeypatch, run, content, at, size):
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    with pytest.raises(InputError, match=f"not UTF-8 text: byte {at}"):
        kept(monkeypatch, run, pieces)
    assert not list(run.path.glob("input*"))


def test_memory_does_not_grow_with_the_text(monkeypatch, run):
    piece = b"a word " * 100_000
    kept(monkeypatch, Run(run.path / "warm"), [piece])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Stdin(piece for _ in range(40))))
    tracemalloc.start()
    path = spool(run, force=False, n_tokens=10**6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size == 40 * len(piece) and peak < 5 * len(piece)


def test_a_real_stream_is_read(monkeypatch, run):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    monkeypatch.setattr(spooling, "tell_what_is_waited_for", lambda _: None)
    assert spool(run, force=False, n_tokens=10**6).read_bytes() == b"text"


@pytest.mark.parametrize("character", ["a", "é", "日", "\N{SNOWMAN} "])
def test_a_pipe_without_an_end_is_read_as_far_as_tokens_can_need_it(monkeypatch, run, capsys, character):
    class Endless:
        n_read = 0

        def read(self, n):
            start = self.n_read % len(content)
            self.n_read += n
            return (content * (n // len(content) + 2))[start : start + n]

    content = character.encode()
    for n_tokens, n_bytes in ((1, 2**20), (20_000, 20_000 * spooling.TOKEN_BYTES)):
        stdin = Endless()
        monkeypatch.setattr(spooling, "tell_what_is_waited_for", lambda _: None)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
        kept_text = spool(run, force=True, n_tokens=n_tokens).read_text(encoding="utf-8")
        assert n_bytes - len(content) < len(kept_text.encode()) <= n_bytes == stdin.n_read
        assert kept_text == (character * len(kept_text))[: len(kept_text)]
    assert "bytes of stdin are kept" in capsys.readouterr().err


def test_nul_on_stdin_is_no_text(monkeypatch, run):
    with pytest.raises(InputError, match="stdin is not text: it contains NUL bytes"):
        kept(monkeypatch, run, [b"\0" * 100])
    assert not run.path.exists()
