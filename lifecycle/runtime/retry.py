"""Retry after a TransientError, within a budget, and space out the requests to a server that is overloaded.

Headscale checks the API key of a request even if the client has given up. Hundreds of pods that start at once must
therefore wait while the server processes their requests, and must not send them faster than it can.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import monotonic
from typing import Any, TypeVar

import structlog
import tenacity

from lifecycle.domain.backoff import retry_delay_s
from lifecycle.domain.errors import StoppedError, TransientError

log = structlog.get_logger()

Result = TypeVar("Result")

_MAX_DELAY_S = 15.0

# The number of retries. If an upstream refuses connections, they take two to three minutes in all.
MAX_RETRIES = 12

# A longer call shows that the server is busy. On an idle server, a list of 5,000 nodes takes one second.
_SLOW_S = 2.0

# The longest pause after a slow call, as a multiple of the time beyond _SLOW_S; doubled by each slow failure. The mean
# pause is half of it, so a quarter of the pods that start at once have a request at the server at any time.
_PAUSE_FACTOR = 6.0
_MAX_PAUSE_S = 300.0


def once() -> tenacity.Retrying:
    """Return a policy without retries, for a loop that runs again anyway."""
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True)


class RetryBudget:
    """A limit for the time and number of the retries of several calls together.

    Args:
        length: the time after which no retry starts.
        clock: returns seconds that never go back.
    """

    def __init__(self, length: timedelta, *, clock: Callable[[], float] = monotonic) -> None:
        self._length_s = length.total_seconds()
        self.clock = clock
        self.renew()

    def renew(self) -> None:
        """Start with a full budget again."""
        self._deadline = self.clock() + self._length_s
        self._left = MAX_RETRIES

    def allows(self, wait_s: float) -> bool:
        """Return True if a retry after this wait is within the budget."""
        return self._left > 0 and self.clock() + wait_s < self._deadline

    def spend(self) -> None:
        """Count a retry."""
        self._left -= 1


class Pace:
    """How soon an upstream may get the next request: after a slow response, a random pause that grows with it.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._not_before_s = float("-inf")
        self._factor = _PAUSE_FACTOR

    @property
    def pause_s(self) -> float:
        """The rest of the pause; 0 if there is none."""
        return max(0.0, self._not_before_s - self._clock())

    def measured(self, call: Callable[..., Result]) -> Callable[..., Result]:
        """Return the call, followed by a pause if it was slow."""

        def run(*arguments: Any) -> Result:
            started_s = self._clock()
            try:
                result = call(*arguments)
            except TransientError as error:
                if error.sent:
                    self._pause_after(self._clock() - started_s, failed=True)
                raise
            self._pause_after(self._clock() - started_s)
            return result

        return run

    def _pause_after(self, duration_s: float, *, failed: bool = False) -> None:
        slow_s = duration_s - _SLOW_S
        if slow_s <= 0:
            return
        longest_s = min(self._factor * slow_s, _MAX_PAUSE_S)
        # The server is still busy with the requests that it received before the failed one.
        least_s = min(duration_s, longest_s) if failed else 0.0
        self._not_before_s = self._clock() + random.uniform(least_s, longest_s)  # noqa: S311 - spreads load
        if failed:
            self._factor *= 2


class PacedRetrying(tenacity.Retrying):
    """A policy that also pauses before a call.

    Args:
        pace: of the upstream.
        pause: waits for some seconds.
        options: those of `tenacity.Retrying`.
    """

    def __init__(self, pace: Pace, pause: Callable[[float], None], **options: Any) -> None:
        super().__init__(**options)
        self._pace = pace
        self._pause = pause

    def __call__(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call the function, and retry it."""
        pause_s = self._pace.pause_s
        if pause_s > 0:
            log.info("request.delayed", wait_s=round(pause_s, 1), reason="the last response was slow")
            self._pause(pause_s)
        return super().__call__(self._pace.measured(fn), *args, **kwargs)


def retrying(*, budget: RetryBudget, stop: Event, sleep: Callable[[float], None] | None = None) -> tenacity.Retrying:
    """Return a policy that retries within a budget; the last error is raised.

    Args:
        budget: shared by all calls.
        stop: ends a wait; nothing is sent after it.
        sleep: replaces the wait in tests.

    Raises:
        StoppedError: from a call that waits for its next attempt.
    """
    pace = Pace(budget.clock)

    def is_over(state: tenacity.RetryCallState) -> bool:
        return stop.is_set() or not budget.allows(state.upcoming_sleep)

    # With tenacity's own sleep on an event, one more request would be sent after the stop.
    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError("stopped while waiting for the next attempt; nothing needs undoing")

    def retry_wait_s(state: tenacity.RetryCallState) -> float:
        return max(_wait_s(state), pace.pause_s)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        budget.spend()
        _log_retry(state)

    return PacedRetrying(
        pace,
        sleep or wait,
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=is_over,
        wait=retry_wait_s,
        sleep=sleep or wait,
        before_sleep=before_sleep,
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
