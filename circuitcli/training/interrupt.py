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

    A signal that the process was told to ignore, as shells do for what they start in the background, stays ignored.
    Does nothing outside the main thread, which alone gets signals.
    """
    postponed = Postponed()
    if threading.current_thread() is not threading.main_thread():
        yield postponed
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, frame: FrameType | None) -> None:
        postponed.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield postponed
    finally:
        restore()
    if postponed.number is not None:
        signal.raise_signal(postponed.number)
