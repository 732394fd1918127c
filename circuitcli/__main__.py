"""``circuit``, also as ``python -m circuitcli``."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command that was typed; returns the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from circuitcli.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        # Interrupted while the commands were loaded, or again while the first interrupt was being dealt with.
        os._exit(130)


def _terminate(number: int, frame: FrameType | None) -> None:
    # Unwinds like an interrupt, so that a stage can save what it has.
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
