"""Retry after a TransientError: exponential backoff within a time budget."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import monotonic

import structlog
import tenacity

from lifecycle.domain.backoff import retry_delay_s
from lifecycle.domain.errors import StoppedError, TransientError

log = structlog.get_logger()

_MAX_DELAY_S = 15.0


def once() -> tenacity.Retrying:
    """Return a policy without retries, for a loop that runs again anyway."""
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True)


class RetryBudget:
    """The time for all retries of several calls together.

    Args:
        length: no retry starts later than this.
        clock: returns seconds that never go back.
    """

    def __init__(self, length: timedelta, *, clock: Callable[[], float] = monotonic) -> None:
        self._length_s = length.total_seconds()
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Start the time again, after a wait that does not count."""
        self._deadline = self._clock() + self._length_s

    def allows(self, wait_s: float) -> bool:
        """Return True if a retry after this wait is within the budget."""
        return self._clock() + wait_s < self._deadline


def retrying(*, budget: RetryBudget, stop: Event, sleep: Callable[[float], None] | None = None) -> tenacity.Retrying:
    """Return a policy that retries within a budget; the last error is raised.

    Args:
        budget: shared by all calls.
        stop: ends a wait; nothing is sent after it.
        sleep: replaces the wait in tests.

    Raises:
        StoppedError: from a call that waits for its next attempt.
    """

    def is_over(state: tenacity.RetryCallState) -> bool:
        return stop.is_set() or not budget.allows(state.upcoming_sleep)

    # Tenacity's own wait on an event would send once more after the stop.
    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError("stopped while waiting for the next attempt; nothing needs undoing")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=is_over,
        wait=_wait_s,
        sleep=sleep or wait,
        before_sleep=_log_retry,
        reraise=True,
    )


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    jitter = random.random()  # noqa: S311 - spreads load, hides nothing
    return retry_delay_s(state.attempt_number, max_s=_MAX_DELAY_S, jitter=jitter, error=error)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "retry.scheduled",
        attempt=state.attempt_number,
        wait_s=round(state.upcoming_sleep, 1),
        error=str(error),
    )
