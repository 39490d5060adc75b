"""Entry point: react to stop signals before anything slow is imported."""

import sys

from lifecycle.domain.errors import EXIT_FAILED
from lifecycle.runtime.stop import exit_on_stop_signals


def main() -> int:
    """Run the command line and return the exit status."""
    arguments = sys.argv[1:]
    is_watching = arguments[:1] == ["dns-watch"] and "--dry-run" not in arguments
    exit_on_stop_signals(0 if is_watching else EXIT_FAILED)
    from lifecycle.cli import run  # noqa: PLC0415 - takes seconds under a tight CPU limit

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
