"""The entry point of the program. It handles stop signals before it imports libraries, which can take seconds."""

import gc
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, and end the process with the exit status."""
    # The kernel discards signals to process number 1 of a container until the process handles them. A blocked signal
    # stays pending instead, and is handled below.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    # Most objects are needed until the process ends, so garbage collection would only take time. After its start,
    # dns-watch turns garbage collection on again.
    gc.disable()
    from lifecycle.domain.errors import EXIT_FAILED  # noqa: PLC0415 - only after the signals are blocked
    from lifecycle.runtime.stop import exit_on_stop_signals  # noqa: PLC0415 - as above

    arguments = sys.argv[1:]
    # dns-watch runs until it is stopped, so a stop signal is not a failure. A command that ends by itself, such as
    # cleanup or `dns-watch --once`, has not done its work.
    is_watching = arguments[:1] == ["dns-watch"] and not {"--dry-run", "--once"} & set(arguments)
    exit_on_stop_signals(0 if is_watching else EXIT_FAILED)
    import lifecycle.imports  # noqa: PLC0415, F401 - makes the imports of libraries faster
    from lifecycle.cli import parse_arguments, run  # noqa: PLC0415 - takes seconds under a tight CPU limit

    # A regular exit would take time to free each object, and all output is already flushed.
    os._exit(run(parse_arguments(arguments)))


if __name__ == "__main__":
    main()
