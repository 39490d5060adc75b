"""Stop the program on SIGTERM or SIGINT, within two seconds."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from socket import socket
from threading import Event, Thread
from types import FrameType

from lifecycle.runtime.termination import write_termination_message

# The time from the signal until the process is terminated. A stop may take two seconds. The difference is a margin for
# slow machines.
GRACE_S = 1.5

# The longest time that `finish` waits for `on_stop`, which logs the stop.
REPORT_S = 0.5

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

STOPPED_EARLY = "stopped by {} before the work was done; no manual cleanup is needed"


def exit_on_stop_signals(exit_status: int) -> None:
    """End the process when a stop signal arrives, or immediately if one arrived while the signals were blocked.

    Unless the exit status is 0, write a termination message. Call this before slow imports. A `Stop` that is created
    later handles the signals instead.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        if exit_status:
            write_termination_message(STOPPED_EARLY.format(signal.Signals(number).name))
        os._exit(exit_status)

    for number in STOP_SIGNALS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class StopEvent(Event):
    """An event that a thread can wait for together with a socket."""

    def __init__(self) -> None:
        super().__init__()
        self._readable, self._writable = os.pipe()

    def set(self) -> None:
        """Set the event."""
        super().set()
        os.write(self._writable, b"\0")

    def wait_readable(self, connection: socket, timeout_s: float) -> bool:
        """Wait until the event is set or the socket has data. Return True if the socket has data."""
        poll = select.poll()
        poll.register(self._readable, select.POLLIN)
        poll.register(connection, select.POLLIN)
        return any(ready == connection.fileno() for ready, _ in poll.poll(timeout_s * 1000))


class Stop(StopEvent):
    """An event that the first stop signal sets.

    Create it before any other thread, because threads inherit the blocked signals. If the process still runs `GRACE_S`
    after the signal, it is terminated. This is safe, because every command can be interrupted at any point.

    Args:
        exit_status: the exit status if the process is terminated.
        on_stop: called once with the name of the signal, after the event is set.
    """

    def __init__(self, exit_status: int, on_stop: Callable[[str], None]) -> None:
        super().__init__()
        self._exit_status = exit_status
        self._on_stop = on_stop
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # A signal handler would run in the main thread, where Event.set() inside of Event.wait() can deadlock. Two
        # threads are used instead. They start now, because the system may refuse a new thread later.
        self._reporter = Thread(target=self._wait_for_signal, name="stop", daemon=True)
        try:
            Thread(target=self._end_process, name="stop-deadline", daemon=True).start()
            self._reporter.start()
        except RuntimeError:
            # The system refuses a thread already now, so `exit_on_stop_signals` continues to handle the signals.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def finish(self) -> None:
        """If the event is set, wait up to `REPORT_S` until the stop is logged. Call this before the process ends."""
        if self.is_set():
            self._reporter.join(REPORT_S)

    def _wait_for_signal(self) -> None:
        number = signal.sigwait(STOP_SIGNALS)
        self.set()
        self._on_stop(signal.Signals(number).name)

    def _end_process(self) -> None:
        self.wait()
        time.sleep(GRACE_S)
        os._exit(self._exit_status)
