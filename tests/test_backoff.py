"""Test the delays before retries, which depend on exponential backoff, jitter and Retry-After."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.backoff import add_jitter, dns_watch_delay_s, retry_delay_s, subtract_jitter
from lifecycle.domain.errors import ApiError, TransientError

JITTER = st.floats(0, 1)
MAX_JITTER_FACTOR = 1.25


def rate_limited(retry_after_s: float | None = None) -> TransientError:
    """Return the error of a response with status 429, with or without a Retry-After."""
    retry_after = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    return TransientError("429", upstream="Cloudflare", status=429, retry_after=retry_after)


@given(seconds=st.floats(0, 1e6), jitter=JITTER)
def test_jitter_adds_at_most_a_quarter(seconds: float, jitter: float) -> None:
    assert seconds <= add_jitter(seconds, jitter) <= seconds * MAX_JITTER_FACTOR


@given(seconds=st.floats(0, 1e6), jitter=JITTER)
def test_jitter_subtracts_at_most_a_fifth(seconds: float, jitter: float) -> None:
    # The tolerance is for rounding of floating-point numbers. A fifth is 1 - 1 / MAX_JITTER_FACTOR.
    assert seconds / MAX_JITTER_FACTOR <= subtract_jitter(seconds, jitter) * (1 + 1e-9)
    assert subtract_jitter(seconds, jitter) <= seconds * (1 + 1e-9)


@given(failures=st.integers(1, 10_000), max_s=st.floats(0.5, 3600), jitter=JITTER)
def test_delay_is_bounded_after_any_number_of_failures(failures: int, max_s: float, jitter: float) -> None:
    assert 0.5 <= retry_delay_s(failures, max_s=max_s, jitter=jitter) <= max_s * MAX_JITTER_FACTOR


@given(failures=st.integers(1, 100), requested_s=st.floats(0, 86_400), jitter=JITTER)
def test_delay_is_at_least_the_retry_after(failures: int, requested_s: float, jitter: float) -> None:
    delay_s = retry_delay_s(failures, max_s=1.0, jitter=jitter, error=rate_limited(requested_s))
    min_s = max(requested_s, retry_delay_s(failures, max_s=1.0, jitter=0))
    # A timedelta has a resolution of a microsecond.
    assert min_s - 1e-6 <= delay_s <= min_s * MAX_JITTER_FACTOR + 1e-6


@pytest.mark.parametrize("error", [ValueError(), ApiError("400", upstream="Headscale"), rate_limited()])
def test_error_without_a_retry_after_does_not_change_the_delay(error: Exception) -> None:
    assert retry_delay_s(2, max_s=60.0, jitter=0, error=error) == retry_delay_s(2, max_s=60.0, jitter=0)


def test_delays_double_up_to_the_maximum() -> None:
    delays = [retry_delay_s(failures, max_s=300.0, jitter=0) for failures in range(1, 13)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@pytest.mark.parametrize(
    ("error", "failures", "expected_s"),
    [
        pytest.param(rate_limited(), 1, 60.0, id="429 without Retry-After"),
        pytest.param(rate_limited(5), 1, 5.0, id="429 with Retry-After"),
        pytest.param(rate_limited(0), 9, 128.0, id="ninth 429 with Retry-After 0"),
        pytest.param(TransientError("502", upstream="Cloudflare"), 3, 2.0, id="third 502"),
    ],
)
def test_backoff_is_at_least_a_minute_after_a_429_without_retry_after(
    error: TransientError, failures: int, expected_s: float
) -> None:
    assert dns_watch_delay_s(failures, max_s=300.0, jitter=0, error=error) == expected_s
