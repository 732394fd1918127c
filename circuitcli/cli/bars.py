"""Progress bars on stderr, with rate and time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from circuitcli import progress
from circuitcli.cli.console import console
from circuitcli.progress import Advance

if TYPE_CHECKING:
    from rich.progress import Progress


class Bars:
    """A sink of `circuitcli.progress`: one display, in which tasks may run inside tasks."""

    def __init__(self) -> None:
        self._display: Progress | None = None
        self._depth = 0

    @contextmanager
    def __call__(self, title: str, total: int | float | None, unit: str, done: int | float) -> Iterator[Advance]:
        """A bar that moves with ``advance`` and, inside another one, goes away when it is done."""
        if self._display is None:
            self._display = _display()
            self._display.start()
        display, self._depth = self._display, self._depth + 1
        task = display.add_task(title, total=total, unit=unit, note="")
        display.update(task, completed=done)

        def advance(amount: int | float = 1, *, note: str = "") -> None:
            display.advance(task, amount)
            if note:
                display.update(task, note=note)

        try:
            yield advance
        finally:
            self._depth -= 1
            if self._depth:
                display.remove_task(task)
            else:
                display.stop()
                self._display = None


def show_progress() -> None:
    """Draw all progress if stderr is a terminal; be silent otherwise."""
    progress.set_sink(Bars() if console.animates else None)


def _display() -> "Progress":
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "" if task.total is None else f"/{task.total:,.0f}"
            return Text(f"{task.completed:,.0f}{total} {task.fields['unit']}")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if not speed else f"{speed:,.{0 if speed >= 10 else 1}f}/s", style="cyan")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Amount(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False, style="dim"),
        console=console.rich(stderr=True),
    )
