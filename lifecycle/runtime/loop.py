"""Repeat one pass until asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

# How often a wait looks up: the VPN interface costs nothing to look at.
TICK_S = 1.0


def repeat(
    one_pass: Callable[[], float],
    *,
    stop: Event,
    wake: Callable[[], bool],
    monotonic: Callable[[], float],
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run passes, and between them wait as long as each one asked for.

    Args:
        one_pass: gives the seconds until the next; what it raises ends the loop.
        stop: ends a wait at once, and with it the loop.
        wake: asked once a tick; true ends the wait early.
        monotonic: seconds that never go back.
        finished: asked after each pass; true ends the loop.
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
