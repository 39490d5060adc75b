"""Being asked to stop: one event, set by SIGTERM or SIGINT, and a way out when the work does not end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from threading import Event, Thread

# SIGTERM has to end the process within 2 s; what is left is for the interpreter's own exit.
GRACE_S = 1.5

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def hold_stop_signals(signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
    """Keep these signals waiting until `stop_event` takes them.

    To be called before anything slow: for process number 1 of a container a
    signal that nobody handles is dropped, but one that is blocked waits.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def stop_event(
    exit_status: int,
    on_stop: Callable[[str], None],
    signals: Iterable[signal.Signals] = STOP_SIGNALS,
) -> Event:
    """Return an event that the first of these signals sets.

    Work that has not ended `GRACE_S` after that is cut off: nothing needs undoing.

    Args:
        exit_status: the process's status when it had to be cut off.
        on_stop: told the signal's name, once, before the event is set.
        signals: what ends the command.
    """
    stop = Event()
    hold_stop_signals(signals)

    def wait() -> None:
        name = signal.Signals(signal.sigwait(signals)).name
        try:
            on_stop(name)
        finally:
            # Also when nobody can be told any more, because our output is closed or its disk is full.
            stop.set()
            # Nobody sets this one: it is a wait that the end of the process ends.
            Event().wait(GRACE_S)
            os._exit(exit_status)

    # A thread, not a handler: a handler runs inside whatever the main thread
    # is doing, and Event.set() inside Event.wait() can deadlock.
    Thread(target=wait, name="stop", daemon=True).start()
    return stop
