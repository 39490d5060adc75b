"""The one retry policy: again on a TransientError, with growing pauses, until a deadline."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import monotonic

import structlog
import tenacity

from lifecycle.domain.errors import StoppedError, TransientError

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_JITTER = 0.25

# A limit that was met locks everybody out for minutes, and each further request counts.
_UNTOLD_PAUSE_S = 60.0


def jittered(seconds: float) -> float:
    """The duration, lengthened by up to a quarter: many pods start at once."""
    return seconds * (1 + random.uniform(0, _JITTER))  # noqa: S311 - spreads load, hides nothing


def shortened(seconds: float) -> float:
    """The duration, shortened by up to a fifth: for one that was promised as the longest."""
    return jittered(seconds / (1 + _JITTER))


def pause_s(failures: int, *, longest_s: float, error: BaseException | None = None) -> float:
    """How long to stay away after so many failures in a row.

    What the service asked for wins over our own pause, however long it is.

    Args:
        failures: at least 1.
        longest_s: seconds; our own pause grows up to this.
        error: the last failure.
    """
    if isinstance(error, TransientError) and error.retry_after is not None:
        return jittered(max(error.retry_after.total_seconds(), _FIRST_PAUSE_S))
    # The exponent is bounded: 2.0 ** 2000 is an OverflowError, after a long night of failures.
    return jittered(min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), longest_s))


def backoff_s(failures: int, *, longest_s: float, error: Exception) -> float:
    """How long a loop that never ends stays away: for as long as it was asked to, and ever longer of itself.

    Args:
        failures: in a row, at least 1.
        longest_s: seconds; our own pause grows up to this.
        error: the last failure.
    """
    own_s = pause_s(failures, longest_s=longest_s)
    if isinstance(error, TransientError) and error.throttled and error.retry_after is None:
        own_s = max(own_s, jittered(_UNTOLD_PAUSE_S))
    return max(own_s, pause_s(failures, longest_s=longest_s, error=error))


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
    return pause_s(state.attempt_number, longest_s=_LONGEST_PAUSE_S, error=error)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "retry.scheduled",
        attempt=state.attempt_number,
        wait_s=round(state.upcoming_sleep, 1),
        error=str(error),
    )
