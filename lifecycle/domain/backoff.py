"""How long to wait before the next attempt; pure.

`jitter` is a number from 0 to 1 that the caller draws: many pods start at once, and their requests are spread.
"""

from __future__ import annotations

from lifecycle.domain.errors import TransientError

_FIRST_DELAY_S = 0.5
_MAX_JITTER = 0.25

# A rate limit blocks every client of the account for minutes, and each further request counts.
_RATE_LIMIT_DELAY_S = 60.0

# 2.0 ** 2000 is an OverflowError, which a long outage would reach.
_MAX_EXPONENT = 16


def lengthened(seconds: float, jitter: float) -> float:
    """Lengthen a duration by up to a quarter."""
    return seconds * (1 + _MAX_JITTER * jitter)


def shortened(seconds: float, jitter: float) -> float:
    """Shorten a duration by up to a fifth, so that it stays a maximum."""
    return lengthened(seconds / (1 + _MAX_JITTER), jitter)


def doubled(seconds: float, times: int, *, max_s: float) -> float:
    """Double a duration so many times, up to a maximum."""
    return min(seconds * 2.0 ** min(times, _MAX_EXPONENT), max_s)


def retry_delay_s(failures: int, *, max_s: float, jitter: float, error: BaseException | None = None) -> float:
    """Return the delay after consecutive failures, at least 1: exponential, or a Retry-After that is longer."""
    delay_s = doubled(_FIRST_DELAY_S, failures - 1, max_s=max_s)
    if isinstance(error, TransientError) and error.retry_after is not None:
        delay_s = max(delay_s, error.retry_after.total_seconds())
    return lengthened(delay_s, jitter)


def backoff_s(failures: int, *, max_s: float, jitter: float, error: Exception) -> float:
    """Return the delay of an endless loop: the longer of the exponential delay and what the upstream requested."""
    delay_s = retry_delay_s(failures, max_s=max_s, jitter=jitter, error=error)
    if isinstance(error, TransientError) and error.throttled and error.retry_after is None:
        return max(delay_s, lengthened(_RATE_LIMIT_DELAY_S, jitter))
    return delay_s
