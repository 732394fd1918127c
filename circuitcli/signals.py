"""The signals that stop a command, noted when they come.

A signal raises in whatever code it comes into. Libraries that are being imported turn that into errors of their own, so
what is told of the end is the signal, not what was made of it.
"""

import signal
import sys
from types import FrameType

_came: list[int] = []


def install() -> None:
    """Let SIGTERM unwind like an interrupt, so that a stage can save what it has, and note both.

    A SIGINT that the process was told to ignore, as shells do for what they start in the background, stays ignored.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, _stop)


def came() -> int | None:
    """The number of the first signal that came, if one did."""
    return _came[0] if _came else None


def behind(error: BaseException) -> BaseException:
    """What ended the command: the signal that came, or else the error."""
    if came() is None:
        return error
    return KeyboardInterrupt() if came() == signal.SIGINT else SystemExit(128 + signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
