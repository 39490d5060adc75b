"""Compute how long to wait before the next attempt.

Each argument `jitter` is a random number from 0 to 1. It spreads the requests of pods that start at the same time.
"""

from __future__ import annotations

from lifecycle.domain.errors import TransientError

_FIRST_DELAY_S = 0.5
_MAX_JITTER = 0.25

# If one client exceeds Cloudflare's rate limit, Cloudflare blocks all clients of the account for several minutes, so
# dns-watch then retries at most once a minute.
_RATE_LIMIT_DELAY_S = 60.0

# During a long outage, there can be more than a thousand failures in a row, and 2.0 ** 1024 raises OverflowError.
_MAX_EXPONENT = 16


def add_jitter(seconds: float, jitter: float) -> float:
    """Return the duration plus 0 to 25 %, depending on the jitter."""
    return seconds * (1 + _MAX_JITTER * jitter)


def subtract_jitter(seconds: float, jitter: float) -> float:
    """Return the duration minus 0 to 20 %, depending on the jitter. The result never exceeds the duration."""
    return add_jitter(seconds / (1 + _MAX_JITTER), jitter)


def doubled(seconds: float, times: int, *, max_s: float) -> float:
    """Return the duration, doubled the given number of times, but at most `max_s`."""
    return min(seconds * 2.0 ** min(times, _MAX_EXPONENT), max_s)


def retry_delay_s(failures: int, *, max_s: float, jitter: float, error: BaseException | None = None) -> float:
    """Return the delay after this many consecutive failures, or the `Retry-After` of the error if that is longer.

    The delay doubles with each failure, up to `max_s`. Jitter is added to the result.
    """
    delay_s = doubled(_FIRST_DELAY_S, failures - 1, max_s=max_s)
    if isinstance(error, TransientError) and error.retry_after is not None:
        delay_s = max(delay_s, error.retry_after.total_seconds())
    return add_jitter(delay_s, jitter)


def dns_watch_delay_s(failures: int, *, max_s: float, jitter: float, error: Exception) -> float:
    """Return `retry_delay_s`, but at least a minute after a response 429 (too many requests) without `Retry-After`."""
    delay_s = retry_delay_s(failures, max_s=max_s, jitter=jitter, error=error)
    if isinstance(error, TransientError) and error.throttled and error.retry_after is None:
        return max(delay_s, add_jitter(_RATE_LIMIT_DELAY_S, jitter))
    return delay_s
