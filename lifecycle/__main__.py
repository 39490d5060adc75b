"""Entry point: react to stop signals before anything slow is imported."""

import signal
import sys


def main() -> int:
    """Run the command line and return the exit status."""
    # For process number 1 of a container, the kernel drops a signal that has no handler and is not blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    from lifecycle.domain.errors import EXIT_FAILED  # noqa: PLC0415 - the signals are blocked before
    from lifecycle.runtime.stop import exit_on_stop_signals  # noqa: PLC0415 - as above

    arguments = sys.argv[1:]
    is_watching = arguments[:1] == ["dns-watch"] and "--dry-run" not in arguments
    exit_on_stop_signals(0 if is_watching else EXIT_FAILED)
    from lifecycle.cli import run  # noqa: PLC0415 - takes seconds under a tight CPU limit

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
