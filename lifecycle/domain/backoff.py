"""How long to wait before the next attempt; pure.

Each `jitter` is a random number from 0 to 1. It spreads the requests of pods that start at the same time.
"""

from __future__ import annotations

from lifecycle.domain.errors import TransientError

_FIRST_DELAY_S = 0.5
_MAX_JITTER = 0.25

# Cloudflare's rate limit blocks all clients of the account for several minutes.
_RATE_LIMIT_DELAY_S = 60.0

# 2.0 ** 1024 is an OverflowError, and a long outage has more failures than that.
_MAX_EXPONENT = 16


def lengthened(seconds: float, jitter: float) -> float:
    """Return the duration plus up to 25 %."""
    return seconds * (1 + _MAX_JITTER * jitter)


def shortened(seconds: float, jitter: float) -> float:
    """Return the duration minus up to 20 %, for a maximum that must not be exceeded."""
    return lengthened(seconds / (1 + _MAX_JITTER), jitter)


def doubled(seconds: float, times: int, *, max_s: float) -> float:
    """Return the duration doubled so many times, up to a maximum."""
    return min(seconds * 2.0 ** min(times, _MAX_EXPONENT), max_s)


def retry_delay_s(failures: int, *, max_s: float, jitter: float, error: BaseException | None = None) -> float:
    """Return the delay of exponential backoff, or the error's Retry-After if that is longer.

    Args:
        failures: the number of consecutive failures, at least 1.
    """
    delay_s = doubled(_FIRST_DELAY_S, failures - 1, max_s=max_s)
    if isinstance(error, TransientError) and error.retry_after is not None:
        delay_s = max(delay_s, error.retry_after.total_seconds())
    return lengthened(delay_s, jitter)


def backoff_s(failures: int, *, max_s: float, jitter: float, error: Exception) -> float:
    """Return the delay for a loop that never gives up.

    It is the one of `retry_delay_s`, but at least a minute after "too many requests" (429) without Retry-After.
    """
    delay_s = retry_delay_s(failures, max_s=max_s, jitter=jitter, error=error)
    if isinstance(error, TransientError) and error.throttled and error.retry_after is None:
        return max(delay_s, lengthened(_RATE_LIMIT_DELAY_S, jitter))
    return delay_s
