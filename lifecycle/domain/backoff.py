"""How long to wait before the next attempt; pure.

`jitter` is a random number from 0 to 1. It spreads the requests of pods that start at the same time.
"""

from __future__ import annotations

from lifecycle.domain.errors import TransientError

_FIRST_DELAY_S = 0.5
_MAX_JITTER = 0.25

# A rate limit blocks every client of the account for minutes, and further requests prolong it.
_RATE_LIMIT_DELAY_S = 60.0

# A long outage would otherwise reach 2.0 ** 2000, which is an OverflowError.
_MAX_EXPONENT = 16


def lengthened(seconds: float, jitter: float) -> float:
    """Return a duration that is longer by up to a quarter."""
    return seconds * (1 + _MAX_JITTER * jitter)


def shortened(seconds: float, jitter: float) -> float:
    """Return a duration that is shorter by up to a fifth, for one that is a maximum."""
    return lengthened(seconds / (1 + _MAX_JITTER), jitter)


def doubled(seconds: float, times: int, *, max_s: float) -> float:
    """Return a duration that was doubled the given number of times, up to a maximum."""
    return min(seconds * 2.0 ** min(times, _MAX_EXPONENT), max_s)


def retry_delay_s(failures: int, *, max_s: float, jitter: float, error: BaseException | None = None) -> float:
    """Return the exponential delay, or the error's Retry-After if that is longer.

    Args:
        failures: how many there were in a row, at least 1.
    """
    delay_s = doubled(_FIRST_DELAY_S, failures - 1, max_s=max_s)
    if isinstance(error, TransientError) and error.retry_after is not None:
        delay_s = max(delay_s, error.retry_after.total_seconds())
    return lengthened(delay_s, jitter)


def backoff_s(failures: int, *, max_s: float, jitter: float, error: Exception) -> float:
    """Return the delay of a loop that never gives up.

    It is that of `retry_delay_s`, but at least a minute if the upstream limited the rate without a Retry-After.
    """
    delay_s = retry_delay_s(failures, max_s=max_s, jitter=jitter, error=error)
    if isinstance(error, TransientError) and error.throttled and error.retry_after is None:
        return max(delay_s, lengthened(_RATE_LIMIT_DELAY_S, jitter))
    return delay_s
