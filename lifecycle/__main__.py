"""The entry point. It reacts to stop signals before the slow imports of libraries."""

import gc
import os
import signal
import sys


def main() -> int:
    """Run the command line and return the exit status, or end the process with it."""
    # For process number 1 of a container, the kernel drops a signal that has no handler and is not blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    # Most objects are needed until the process ends, so garbage collection would only take time.
    gc.disable()
    from lifecycle.domain.errors import EXIT_FAILED  # noqa: PLC0415 - the signals are blocked before
    from lifecycle.runtime.stop import exit_on_stop_signals  # noqa: PLC0415 - as above

    arguments = sys.argv[1:]
    # dns-watch runs until it is stopped. The other commands are stopped before their work is done.
    is_watching = arguments[:1] == ["dns-watch"] and "--dry-run" not in arguments
    exit_on_stop_signals(0 if is_watching else EXIT_FAILED)
    import lifecycle.imports  # noqa: PLC0415, F401 - before the libraries
    from lifecycle.cli import parse_arguments, run  # noqa: PLC0415 - takes seconds under a tight CPU limit

    options = parse_arguments(arguments)
    status = run(options)
    if not options.is_dry_run:
        # All output is flushed, and a regular exit would take time to free each object. Only a dry run needs it: with
        # a kubeconfig, the Kubernetes library removes its temporary files at a regular exit.
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
