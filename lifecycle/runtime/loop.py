"""Repeat the passes of a command until it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event


def repeat(
    one_pass: Callable[[], float],
    *,
    stop: Event,
    wake: Callable[[], bool],
    pause: Callable[[float], object],
    monotonic: Callable[[], float],
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run passes, each followed by the wait that it returns.

    Args:
        one_pass: returns the seconds until the next pass; an exception ends the loop.
        stop: ends the loop.
        wake: called before each pause; True starts the next pass immediately.
        pause: waits, at most for this many seconds. It returns early at the stop, or if `wake` should be called.
        monotonic: returns seconds that never go back.
        finished: called after each pass; True ends the loop.
    """
    while not stop.is_set():
        wait_s = one_pass()
        until = monotonic() + wait_s
        if finished():
            return
        while not stop.is_set() and not wake():
            left = until - monotonic()
            if left <= 0:
                break
            pause(left)
