"""Write log lines and other text to standard output and standard error."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from contextlib import suppress
from threading import Condition, Thread
from typing import TextIO

# The maximum length of the queue. Even a busy program logs this many lines only in several minutes.
_MAX_WAITING_LINES = 1000


class LineOutput:
    """Writes lines in their order, in a separate thread.

    If the reader of a pipe stops reading, only this thread blocks, not the program. A line is dropped and counted if
    the queue is full, or if the line cannot be written.

    Args:
        stream: provides the file descriptor and the encoding; None = every line is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # If a standard stream was closed, its descriptor (1 or 2) can belong to another file, such as the key file. So
        # only the descriptor of `stream` is used.
        self._descriptor = stream.fileno() if stream is not None else None
        self._encoding = stream.encoding if stream is not None else "utf-8"
        self._waiting: deque[bytes] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._is_line_open = False
        self.dropped = 0

    def write_line(self, line: str) -> None:
        """Queue a line."""
        with self._changed:
            if self._descriptor is None or len(self._waiting) >= _MAX_WAITING_LINES:
                self.dropped += 1
                return
            self._waiting.append(f"{line}\n".encode(self._encoding, "backslashreplace"))
            # If the system refuses a thread, the lines wait until one can be started.
            with suppress(RuntimeError):
                if self._thread is None:
                    thread = Thread(target=self._run, args=[self._descriptor], name="log", daemon=True)
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Wait until all lines are written, or until the time-out."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _run(self, descriptor: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting[0]
            is_written = self._write(descriptor, line)
            with self._changed:
                self._waiting.popleft()
                self.dropped += not is_written
                self._changed.notify_all()

    def _write(self, descriptor: int, line: bytes) -> bool:
        # If the previous line was written only in part, because a disk was full, this line starts on a new one.
        rest = memoryview(b"\n" + line if self._is_line_open else line)
        while rest:
            try:
                written = _write_part(descriptor, rest)
            except OSError:
                return False
            if written:
                rest = rest[written:]
                self._is_line_open = bool(rest)
        return True


def _write_part(descriptor: int, data: memoryview) -> int:
    """Write some of the bytes, and return how many. If none can be written now, wait until some can, and return 0."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        # Another process that uses the same pipe or terminal has made it non-blocking.
        select.select([], [descriptor], [])
        return 0


def standard_stream(name: str) -> TextIO | None:
    """Return `stdout` or `stderr`; None if it was closed when the process started."""
    stream: TextIO | None = getattr(sys, name)
    return stream


def print_text(text: str, name: str = "stdout", *, encoding: str | None = None) -> None:
    """Write text to standard output or standard error, and wait until it is written.

    Args:
        encoding: the encoding of the text; None = that of the stream.

    Raises:
        OSError: it cannot be written.
    """
    stream = standard_stream(name)
    if stream is None:
        raise OSError(f"{name} is closed")
    rest = memoryview(text.encode(encoding or stream.encoding, "backslashreplace"))
    while rest:
        rest = rest[_write_part(stream.fileno(), rest) :]
