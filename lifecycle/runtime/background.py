"""Run a function in a thread that does not keep the process alive."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """Run a function in a daemon thread. The caller's time budget (`runtime.deadline`) does not apply there.

    If the system refuses the thread, the future's `result` raises OSError.

    Args:
        work: the function. It may still be running after the caller has closed the clients that the function uses.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the future's `result` raises it
            future.set_exception(error)

    try:
        Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        future.set_exception(OSError(errno.EAGAIN, "the system refused a new thread"))
    return future
