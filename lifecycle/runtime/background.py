"""Work that goes on beside its caller's, who need not wait for it to the end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """Begin some work in a thread that the end of the process does not wait for.

    Args:
        work: may raise; what it needs may be taken away from it once nobody waits any more.
        name: the thread's.

    Returns:
        What it will give. Whatever it raised is raised to whoever asks for that, and is told to nobody else.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return outcome
