"""``circuit``, also as ``python -m circuitcli``."""

import io
import os
import sys

from circuitcli import signals
from circuitcli.allocator import keep_freed_memory
from circuitcli.processes import share_cores


def main() -> int:
    """Run the command that was typed; returns the exit status."""
    signals.install()
    _open_standard_streams()
    _speak_utf8()
    keep_freed_memory()
    share_cores()
    try:
        from circuitcli.cli.app import run

        return run(sys.argv[1:])
    except BaseException:
        # Stopped while the commands were loaded, or again while the first signal was being dealt with.
        if (number := signals.came()) is None:
            raise
        os._exit(128 + number)


def _open_standard_streams() -> None:
    """Send nowhere what a shell has closed (``>&-``): else the next file that is opened takes the number of stdout."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def _speak_utf8() -> None:
    """Records are UTF-8 whatever the locale says."""
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


if __name__ == "__main__":
    sys.exit(main())
