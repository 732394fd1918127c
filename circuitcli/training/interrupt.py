"""Ctrl-C and termination wait until a step is whole, so that what is saved then is consistent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Postponed:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def postponed_signals() -> Iterator[Postponed]:
    """While this is open the first SIGINT or SIGTERM is only noted; it takes effect at the end, a second one at once.

    Does nothing outside the main thread, which alone gets signals.
    """
    postponed = Postponed()
    if threading.current_thread() is not threading.main_thread():
        yield postponed
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        postponed.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield postponed
    finally:
        restore()
    if postponed.number is not None:
        signal.raise_signal(postponed.number)
