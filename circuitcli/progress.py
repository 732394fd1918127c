"""Progress of long loops and notes, reported to replaceable sinks, so that no layer below the command line prints."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

# Between information for debugging and warnings: what people want to know of a command that goes well.
NOTE = 25
logging.addLevelName(NOTE, "NOTE")
logger = logging.getLogger(__name__)


def note(message: str) -> None:
    """Tell people of a choice that was made for them."""
    logger.log(NOTE, "%s", message)


@runtime_checkable
class Advance(Protocol):
    """Report that ``amount`` more units are done; ``note`` is a short state such as ``loss 0.12``."""

    def __call__(self, amount: int | float = 1, *, note: str = "") -> None: ...


Sink = Callable[[str, int | float | None, str, int | float], AbstractContextManager[Advance]]


@contextmanager
def _silent(title: str, total: int | float | None, unit: str, done: int | float) -> Iterator[Advance]:
    def advance(amount: int | float = 1, *, note: str = "") -> None:
        return None

    yield advance


_sink: Sink = _silent


def set_sink(sink: Sink | None) -> None:
    """Send all progress to ``sink(title, total, unit, done)``; ``None`` silences it."""
    global _sink
    _sink = sink or _silent


def task(title: str, *, total: int | float | None, unit: str, done: int | float = 0) -> AbstractContextManager[Advance]:
    """A running task: ``with task("collect", total=10, unit="tokens") as advance: advance(3)``."""
    return _sink(title, total, unit, done)


def track(items: Iterable[T], title: str, *, total: int | float | None = None, unit: str = "steps") -> Iterator[T]:
    """Yield the items, reporting each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(title, total=total, unit=unit) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def within(name: str) -> Iterator[None]:
    """Inside, all tasks have titles that begin with this name."""
    outer = _sink

    def named(title: str, total: int | float | None, unit: str, done: int | float) -> AbstractContextManager[Advance]:
        return outer(f"{name} {title}", total, unit, done)

    set_sink(named)
    try:
        yield
    finally:
        set_sink(outer)
