"""Retry after a TransientError within a budget, and send fewer requests to a server that is overloaded.

Headscale checks the API key of every request, even if the client no longer waits for the response. This check is
expensive. If hundreds of pods start at the same time, each pod therefore waits for its response instead of sending the
request again, and pauses after a slow response.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic
from typing import Any, TypeVar

import structlog
import tenacity

from lifecycle.domain.backoff import retry_delay_s
from lifecycle.domain.errors import StoppedError, TransientError

log = structlog.get_logger()

Result = TypeVar("Result")

# The longest delay of the exponential backoff.
_MAX_DELAY_S = 15.0

# The largest number of retries within a budget. If Headscale or Cloudflare refuses connections, these retries take two
# to three minutes in total.
RETRIES_PER_BUDGET = 12

# A request that takes longer shows that the server is busy: an idle server returns a list of 5,000 nodes in one second.
_SLOW_S = 2.0

# After a slow request, no request is sent for a random time, up to _PAUSE_FACTOR times the part of the request's
# duration that exceeds _SLOW_S. On average, a pause is about three times as long as the request before it, so each pod
# waits for a response during about a quarter of the time.
_PAUSE_FACTOR = 6.0
_MAX_PAUSE_S = 300.0


def no_retries() -> tenacity.Retrying:
    """Return a retry policy that never retries: for a dry run, and for a loop that repeats its requests anyway."""
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True)


class RetryPolicy(tenacity.Retrying):
    """Retries calls that raise a TransientError, and pauses after a slow request.

    All calls share one budget of time and retries. If the budget is used up, a call raises its last error. If
    `stop_event` is set during a wait, the call raises StoppedError and sends no further request.

    Args:
        budget: the time after which no retry starts.
        clock: returns the seconds of a clock that never goes back.
    """

    def __init__(self, budget: timedelta, stop_event: Event, *, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=self._must_give_up,
            wait=self._delay_s,
            before_sleep=self._count_and_log_retry,
            sleep=self._wait,
            reraise=True,
        )
        self._budget_s = budget.total_seconds()
        self._stop_event = stop_event
        self._clock = clock
        self._pause_ends_at_s = float("-inf")
        self._pause_factor = _PAUSE_FACTOR
        self.renew_budget()

    def renew_budget(self) -> None:
        """Allow the full time and number of retries again."""
        self._budget_ends_at_s = self._clock() + self._budget_s
        self._retries_left = RETRIES_PER_BUDGET

    def __call__(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call the function after the current pause, and retry it."""
        pause_s = self._remaining_pause_s()
        if pause_s > 0:
            log.info("request.delayed", wait_s=round(pause_s, 1), reason="the last response was slow")
            self._wait(pause_s)
        return super().__call__(partial(self._call_once, fn), *args, **kwargs)

    def _call_once(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call the function, and start a pause if the call was slow."""
        started_at_s = self._clock()
        try:
            result = fn(*args, **kwargs)
        except TransientError as error:
            if error.was_sent:
                self._pause_after(self._clock() - started_at_s, has_failed=True)
            raise
        self._pause_after(self._clock() - started_at_s, has_failed=False)
        return result

    def _pause_after(self, duration_s: float, *, has_failed: bool) -> None:
        if duration_s <= _SLOW_S:
            return
        max_pause_s = min(self._pause_factor * (duration_s - _SLOW_S), _MAX_PAUSE_S)
        min_pause_s = 0.0
        if has_failed:
            # The server may still be working on the request, so the pause is not shorter than the request, and
            # later pauses can be twice as long.
            min_pause_s = min(duration_s, max_pause_s)
            self._pause_factor *= 2
        self._pause_ends_at_s = self._clock() + random.uniform(min_pause_s, max_pause_s)  # noqa: S311 - spreads load

    def _remaining_pause_s(self) -> float:
        return max(0.0, self._pause_ends_at_s - self._clock())

    def _must_give_up(self, state: tenacity.RetryCallState) -> bool:
        is_used_up = self._retries_left <= 0 or self._clock() + state.upcoming_sleep >= self._budget_ends_at_s
        return is_used_up or self._stop_event.is_set()

    def _delay_s(self, state: tenacity.RetryCallState) -> float:
        jitter = random.random()  # noqa: S311 - spreads load
        delay_s = retry_delay_s(state.attempt_number, max_s=_MAX_DELAY_S, jitter=jitter, error=_error(state))
        return max(delay_s, self._remaining_pause_s())

    def _count_and_log_retry(self, state: tenacity.RetryCallState) -> None:
        self._retries_left -= 1
        wait_s = round(state.upcoming_sleep, 1)
        log.warning("retry.scheduled", attempt=state.attempt_number, wait_s=wait_s, error=str(_error(state)))

    # tenacity.sleep_using_event is not used, because it would send one more request after a stop.
    def _wait(self, seconds: float) -> None:
        if self._stop_event.wait(seconds):
            raise StoppedError("stopped while waiting for the next attempt; no manual cleanup is needed")


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
