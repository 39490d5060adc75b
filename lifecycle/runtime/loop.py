"""Repeat a pass until the stop."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

# How often a wait checks for a reason to end early.
TICK_S = 1.0


def repeat(
    one_pass: Callable[[], float],
    *,
    stop: Event,
    wake: Callable[[], bool],
    monotonic: Callable[[], float],
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run passes, each followed by the wait that it returns.

    Args:
        one_pass: returns the seconds until the next pass; an exception ends the loop.
        stop: ends a wait, and then the loop.
        wake: called once per tick; True ends the wait.
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
            stop.wait(min(left, TICK_S))
