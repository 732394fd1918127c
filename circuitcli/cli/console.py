"""The one printer: records on stdout; messages, tables, progress and errors on stderr."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitcli.printable import json_printable, printable
from circuitcli.progress import NOTE

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

# A message that is longer says less.
LONGEST_LINE = 1000
RED, CYAN, RESET = "\x1b[1;31m", "\x1b[36m", "\x1b[0m"


@dataclass(frozen=True)
class Rows:
    """A short table for people."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


class Printer:
    """How a command prints; set once from its options."""

    def __init__(self) -> None:
        self.quiet = False
        self.colorful = True
        self.json = False

    def configure(self, *, quiet: bool = False, colorful: bool = True, json: bool = False) -> None:
        """Take over the options of the command that runs."""
        self.quiet, self.colorful, self.json = quiet, colorful, json

    @property
    def prints_records(self) -> bool:
        """Whether stdout gets records rather than text for people."""
        return self.json or not sys.stdout.isatty()

    @property
    def animates(self) -> bool:
        """Whether progress bars may move on stderr."""
        return not self.quiet and stderr_is_terminal() and os.environ.get("TERM") != "dumb"

    @property
    def is_plain(self) -> bool:
        """Whether stdout shows no colours."""
        return self.rich(stderr=False).color_system is None or self.rich(stderr=False).no_color

    def rich(self, *, stderr: bool) -> "RichConsole":
        """A rich console on stdout or stderr."""
        from circuitcli.cli.terminal import SafeConsole

        return SafeConsole(stderr=stderr, no_color=None if self.colorful else True)

    def data(self, text: str) -> None:
        """Print to stdout, unchanged."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def records(self, lines: Iterable[str]) -> None:
        """Print one record a line to stdout, as it is; on a terminal what could steer it is escaped, as JSON does."""
        for line in lines:
            sys.stdout.write((json_printable(line) if sys.stdout.isatty() else line) + "\n")
        sys.stdout.flush()

    def view(self, renderable: "RenderableType") -> None:
        """Print something that was asked for, in colour, to stdout."""
        self.rich(stderr=False).print(renderable)

    def say(self, text: str) -> None:
        """Tell people something, in printable lines, unless they asked for quiet."""
        if not self.quiet:
            _write_error("\n".join(printable(line) for line in text.split("\n")) + "\n")

    def hello(self, text: str) -> None:
        """Say at once, to a person at a terminal, what is about to happen; what follows may take seconds to load."""
        if stderr_is_terminal():
            self.say(text)

    def table(self, rows: Rows) -> None:
        """Show a table on stderr, unless quiet."""
        if not self.quiet and rows.rows:
            self.rich(stderr=True).print(_table(rows))

    def view_table(self, rows: Rows) -> None:
        """Print a table that was asked for to stdout."""
        self.rich(stderr=False).print(_table(rows))

    def error(self, message: str, hint: str = "") -> None:
        """One ``error:`` line and, if there is a hint, one ``hint:`` line."""
        _write_error(f"{self._colored('error:', RED)} {one_line(message)}\n")
        if hint:
            _write_error(f"{self._colored('hint:', CYAN)} {one_line(hint)}\n")

    def _colored(self, text: str, color: str) -> str:
        plain = not self.colorful or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return text if plain or not stderr_is_terminal() else color + text + RESET


def _table(rows: Rows) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(rows.title)) if rows.title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(rows.columns),
    )
    for column in rows.columns:
        table.add_column(column, overflow="fold")
    for row in rows.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


class Messages(logging.Handler):
    """Prints what the layers below log, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        console.say(f"{record.levelname.lower()}: {one_line(record.getMessage())}")


def listen(*, debug: bool) -> None:
    """Print notes and warnings of this package, and with ``debug`` everything that it logs."""
    logger = logging.getLogger("circuitcli")
    logger.handlers = [Messages()]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else NOTE)


def stderr_is_terminal() -> bool:
    """Whether a person is likely to see what is written to stderr."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def one_line(text: str) -> str:
    """The text on one line, without control characters, cut in its middle if it is very long."""
    line = printable(" ".join(text.split()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def _write_error(text: str) -> None:
    # A closed stderr is no reason to fail.
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


console = Printer()
