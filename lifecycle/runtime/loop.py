"""Repeat the passes of a command until it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event


def repeat(
    one_pass: Callable[[], float],
    *,
    stop: Event,
    should_wake: Callable[[], bool],
    pause: Callable[[float], object],
    monotonic: Callable[[], float],
    finished: Callable[[], bool],
) -> None:
    """Run passes, with a wait after each.

    Args:
        one_pass: runs a pass, and returns the seconds to wait until the next pass. An exception ends the loop.
        stop: ends the loop when it is set.
        should_wake: called before each pause; if it returns True, the next pass starts immediately.
        pause: waits for at most the given number of seconds. It returns earlier when `stop` is set, or when something
            has happened for which `should_wake` may return True.
        monotonic: returns the seconds of a clock that never goes back.
        finished: called after each pass; if it returns True, the loop ends.
    """
    while not stop.is_set():
        wait_s = one_pass()
        next_pass_at = monotonic() + wait_s
        if finished():
            return
        while not stop.is_set() and not should_wake():
            left_s = next_pass_at - monotonic()
            if left_s <= 0:
                break
            pause(left_s)
