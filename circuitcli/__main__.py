"""``circuit``, also as ``python -m circuitcli``."""

import os
import sys


def main() -> int:
    """Run the command that was typed; returns the exit status."""
    try:
        from circuitcli.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        # Interrupted again while the first interrupt was being dealt with: leave at once.
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
