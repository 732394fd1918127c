"""``circuit``, also as ``python -m circuitcli``."""

import io
import os
import signal
import sys
from types import FrameType

from circuitcli.allocator import keep_freed_memory
from circuitcli.processes import share_cores


def main() -> int:
    """Run the command that was typed; returns the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    _speak_utf8()
    keep_freed_memory()
    share_cores()
    try:
        from circuitcli.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        # Interrupted while the commands were loaded, or again while the first interrupt was being dealt with.
        os._exit(130)


def _terminate(number: int, frame: FrameType | None) -> None:
    # Unwinds like an interrupt, so that a stage can save what it has.
    sys.exit(143)


def _speak_utf8() -> None:
    """Records are UTF-8 whatever the locale says."""
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


if __name__ == "__main__":
    sys.exit(main())
