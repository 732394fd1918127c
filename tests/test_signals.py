"""A signal ends a command as a signal, whatever the libraries that it came into made of it."""

import os
import signal
import sys
import types
from collections.abc import Iterator

import pytest

from circuitcli import __main__ as program
from circuitcli import signals
from circuitcli.cli import app
from circuitcli.errors import InputError

BOTH = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    signals._came.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def swallowing(number: int, made: Exception) -> None:
    """As a library whose import fails in its own way when a signal comes into it."""
    try:
        os.kill(os.getpid(), number)
    except BaseException:
        raise made from None


@pytest.mark.parametrize(("number", "status", "said"), BOTH)
@pytest.mark.parametrize("made", [ImportError("no C extension"), SystemError("without exception set"), InputError("?")])
def test_a_signal_in_an_import_is_no_fault(monkeypatch, capsys, number: int, status: int, said: str, made: Exception):
    signals.install()
    monkeypatch.setattr(app, "_run", lambda words: swallowing(number, made))
    assert app.run(["train"]) == status
    assert capsys.readouterr().err.startswith(f"error: {said}\n")


@pytest.mark.parametrize(("number", "status", "said"), BOTH)
def test_a_signal_before_there_are_commands_leaves_its_status(monkeypatch, number: int, status: int, said: str):
    monkeypatch.setitem(sys.modules, "circuitcli.cli.app", Loading(number))
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(f"left with {code}"))
    with pytest.raises(SystemExit, match=f"left with {status}"):
        program.main()


class Loading(types.ModuleType):
    """A module that a signal comes into while it is loaded."""

    def __init__(self, number: int) -> None:
        super().__init__("loading")
        self.number = number

    def __getattr__(self, name: str) -> object:
        if name == "run":
            swallowing(self.number, ImportError("cannot import name"))
        raise AttributeError(name)


def test_an_ignored_interrupt_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and signals.came() is None


def test_without_a_signal_a_fault_stays_a_fault(monkeypatch, capsys):
    signals.install()
    monkeypatch.setattr(app, "_run", lambda words: (_ for _ in ()).throw(ImportError("gone")))
    assert app.run(["train"]) == 1
    assert "bug in circuit" in capsys.readouterr().err
