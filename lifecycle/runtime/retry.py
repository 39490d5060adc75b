"""Retry after a TransientError within a budget, and send fewer requests to a server that is overloaded.

Headscale checks the API key of every request, even if the client no longer waits for the response. This check is
expensive. If hundreds of pods start at the same time, each pod therefore waits for its response instead of sending the
request again, and pauses after a slow response.
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

# The largest number of retries within a budget. If Headscale or Cloudflare refuses connections, these retries take two
# to three minutes in total.
MAX_RETRIES = 12

# A call that takes longer shows that the server is busy: an idle server returns a list of 5,000 nodes in one second.
_SLOW_S = 2.0

# The longest pause after a slow call, as a multiple of the time by which the call exceeded _SLOW_S. Each slow call that
# fails doubles this multiple. The average pause is half as long, about three times as long as the call. So about a
# quarter of the pods have a request in progress at any time.
_PAUSE_FACTOR = 6.0
_MAX_PAUSE_S = 300.0


def no_retries() -> tenacity.Retrying:
    """Return a retry policy that never retries, for a loop that repeats its requests anyway."""
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True)


class RetryBudget:
    """Limits the total time and number of retries of several calls.

    Args:
        length: the time after which no retry starts.
        clock: returns the seconds of a clock that never goes back.
    """

    def __init__(self, length: timedelta, *, clock: Callable[[], float] = monotonic) -> None:
        self._length_s = length.total_seconds()
        self.clock = clock
        self.renew()

    def renew(self) -> None:
        """Start again with the full time and number of retries."""
        self._deadline = self.clock() + self._length_s
        self._retries_left = MAX_RETRIES

    def allows(self, wait_s: float) -> bool:
        """Return True if a retry that starts after this wait is within the budget."""
        return self._retries_left > 0 and self.clock() + wait_s < self._deadline

    def spend(self) -> None:
        """Count a retry."""
        self._retries_left -= 1


class Pace:
    """Decides when the next request may be sent. The slower a response was, the longer is the random pause after it.

    Args:
        clock: returns the seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._not_before_s = float("-inf")
        self._factor = _PAUSE_FACTOR

    @property
    def pause_s(self) -> float:
        """The seconds until the next request may be sent; 0 if there is no pause."""
        return max(0.0, self._not_before_s - self._clock())

    def measured(self, call: Callable[..., Result]) -> Callable[..., Result]:
        """Return a function that makes the same call, and then starts a pause if the call was slow."""

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
        excess_s = duration_s - _SLOW_S
        if excess_s <= 0:
            return
        max_pause_s = min(self._factor * excess_s, _MAX_PAUSE_S)
        # A request that failed can still keep the server busy, so the pause lasts at least as long as the request did.
        min_pause_s = min(duration_s, max_pause_s) if failed else 0.0
        self._not_before_s = self._clock() + random.uniform(min_pause_s, max_pause_s)  # noqa: S311 - spreads load
        if failed:
            self._factor *= 2


class PacedRetrying(tenacity.Retrying):
    """A retry policy that also pauses before the first attempt of a call, if its `Pace` requires that.

    Args:
        pace: decides when the next request may be sent; shared by all calls.
        pause: waits for the given number of seconds.
        options: the options of `tenacity.Retrying`.
    """

    def __init__(self, pace: Pace, pause: Callable[[float], None], **options: Any) -> None:
        super().__init__(**options)
        self._pace = pace
        self._pause = pause

    def __call__(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call the function after the pause that `Pace` requires, and retry it as the options say."""
        pause_s = self._pace.pause_s
        if pause_s > 0:
            log.info("request.delayed", wait_s=round(pause_s, 1), reason="the last response was slow")
            self._pause(pause_s)
        return super().__call__(self._pace.measured(fn), *args, **kwargs)


def retrying(*, budget: RetryBudget, stop: Event, sleep: Callable[[float], None] | None = None) -> tenacity.Retrying:
    """Return a policy that retries within a budget. If the budget is used up, the last error is raised.

    If `stop` is set while a call waits for its next attempt, the call raises StoppedError and sends no further request.

    Args:
        budget: shared by all calls.
        sleep: replaces the wait in tests.
    """
    pace = Pace(budget.clock)

    def is_over(state: tenacity.RetryCallState) -> bool:
        return stop.is_set() or not budget.allows(state.upcoming_sleep)

    # tenacity.sleep_using_event is not used, because it would send one more request after a stop.
    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError("stopped while waiting for the next attempt; no manual cleanup is needed")

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
    jitter = random.random()  # noqa: S311 - spreads load
    return retry_delay_s(state.attempt_number, max_s=_MAX_DELAY_S, jitter=jitter, error=error)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "retry.scheduled",
        attempt=state.attempt_number,
        wait_s=round(state.upcoming_sleep, 1),
        error=str(error),
    )
