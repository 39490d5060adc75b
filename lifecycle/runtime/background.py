"""Work in a thread that does not keep the process alive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """Run work in a daemon thread.

    Args:
        work: may raise; it may also outlive the clients that it uses.
        name: of the thread.

    Returns:
        The future result. An exception is raised by `result()` and reported nowhere else.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by result()
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future
