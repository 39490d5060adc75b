"""The one retry policy: again on a TransientError, with growing pauses, until a deadline."""

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
    """The policy of a loop that will come back anyway: no second try within a pass."""
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True)


class RetryBudget:
    """How long calls are tried again, all of them together: counted from now, or from when it was renewed.

    Args:
        length: a try that would start later than this is not made.
        clock: seconds that never go back.
    """

    def __init__(self, length: timedelta, *, clock: Callable[[], float] = monotonic) -> None:
        self._length_s = length.total_seconds()
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Count from now: what comes after a long wait has all of it."""
        self._deadline = self._clock() + self._length_s

    def allows(self, wait_s: float) -> bool:
        """Whether there is some left after so many seconds more."""
        return self._clock() + wait_s < self._deadline


def retrying(*, patience: RetryBudget, stop: Event, sleep: Callable[[float], None] | None = None) -> tenacity.Retrying:
    """Try again on TransientError until the patience is over.

    Args:
        patience: the last error is raised when the next try would start after its end.
        stop: ends a wait at once, and nothing is sent any more.
        sleep: takes seconds; what a test replaces.

    Raises:
        StoppedError: from a call that was waiting for its next try.
    """

    class TooLate(tenacity.stop.stop_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
            return not patience.allows(retry_state.upcoming_sleep)

    # Not tenacity's own wait on an event: it would send once more after the stop.
    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError("asked to stop while waiting for the next try; nothing needs undoing")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_any(TooLate(), tenacity.stop_when_event_set(stop)),
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
