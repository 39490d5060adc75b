"""Let `python -m lifecycle` work, and hold the stop signals before anything slow is imported."""

import sys

from lifecycle.runtime.stop import hold_stop_signals


def main() -> int:
    """Run the command line; the process's exit status."""
    hold_stop_signals()
    from lifecycle.cli import run  # noqa: PLC0415 - slow, and no signal may be lost meanwhile

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
