"""Test retries: which errors are retried, the waits before and between requests, and the budget of time and retries."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import repeat
from typing import Any

import pytest

from lifecycle.domain.errors import (
    ApiError,
    AuthError,
    ConflictError,
    LifecycleError,
    NotFoundError,
    ResponseError,
    StoppedError,
    TransientError,
)
from lifecycle.runtime.retry import RETRIES_PER_BUDGET, RetryPolicy, no_retries
from tests.conftest import FakeStop

BUDGET_S = 120.0

# Jitter multiplies a delay by at most this factor.
MAX_JITTER_FACTOR = 1.25

OUTAGE = TransientError("it is down", upstream="Headscale")
# The error of a request that was not sent, because no connection could be opened.
UNSENT = TransientError("it is unreachable", upstream="Headscale", was_sent=False)


def busy_error(retry_after_s: float) -> TransientError:
    """Return the error of a response with a Retry-After."""
    return TransientError("it is busy", upstream="Headscale", retry_after=timedelta(seconds=retry_after_s))


class FakeRequest:
    """A request that fails with each of these errors in turn, and then succeeds.

    Args:
        duration_s: how far each attempt advances the clock.
    """

    def __init__(self, stop: FakeStop, errors: Iterable[Exception] = (), *, duration_s: float = 0.0) -> None:
        self._stop = stop
        self._errors = iter(errors)
        self._duration_s = duration_s
        self.attempts = 0

    def __call__(self) -> str:
        self.attempts += 1
        self._stop.now += self._duration_s
        for error in self._errors:
            raise error
        return "done"


def policy(stop: FakeStop, *, budget_s: float = BUDGET_S) -> RetryPolicy:
    """Return a retry policy whose clock advances when it waits for the stop event."""
    return RetryPolicy(timedelta(seconds=budget_s), stop, clock=stop.monotonic)


# --- Errors --------------------------------------------------------------------------------------------


def test_transient_errors_are_retried_and_logged(events: list[Any]) -> None:
    stop = FakeStop()
    request = FakeRequest(stop, [busy_error(retry_after_s=2), OUTAGE])

    assert policy(stop)(request) == "done"
    assert request.attempts == 3
    assert [(event["event"], event["log_level"], event["attempt"], event["error"]) for event in events] == [
        ("retry.scheduled", "warning", 1, "it is busy"),
        ("retry.scheduled", "warning", 2, "it is down"),
    ]
    assert [event["wait_s"] for event in events] == [round(wait_s, 1) for wait_s in stop.waits]


@pytest.mark.parametrize(
    "error",
    [
        *(kind("refused", upstream="Headscale") for kind in (AuthError, NotFoundError, ConflictError, ResponseError)),
        ApiError("unknown", upstream="Headscale"),
        LifecycleError("not an ApiError"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("earlier_errors", [[], [OUTAGE]], ids=["first", "after an outage"])
def test_other_errors_are_not_retried(error: Exception, earlier_errors: list[Exception]) -> None:
    stop = FakeStop()
    request = FakeRequest(stop, [*earlier_errors, error])

    with pytest.raises(type(error)) as raised:
        policy(stop)(request)

    assert raised.value is error
    assert request.attempts == 1 + len(earlier_errors)
    assert len(stop.waits) == len(earlier_errors)


def test_policy_without_retries(events: list[Any]) -> None:
    stop = FakeStop()
    request = FakeRequest(stop, [OUTAGE])

    with pytest.raises(TransientError, match="it is down"):
        no_retries()(request)

    assert (request.attempts, events) == (1, [])
    assert no_retries()(request) == "done"


# --- Delays between attempts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "expected_s"),
    [
        pytest.param([OUTAGE] * 6, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0], id="growing"),
        pytest.param([busy_error(retry_after_s=60)], [60.0], id="Retry-After"),
        # A Retry-After is a minimum. A server that has been overloaded for long needs longer delays.
        pytest.param([*[OUTAGE] * 4, busy_error(retry_after_s=1)], [0.5, 1.0, 2.0, 4.0, 8.0], id="short Retry-After"),
    ],
)
def test_delays_depend_on_the_attempt_and_the_retry_after(errors: list[Exception], expected_s: list[float]) -> None:
    stop = FakeStop()

    policy(stop)(FakeRequest(stop, errors))

    for wait_s, min_s in zip(stop.waits, expected_s, strict=True):
        assert min_s <= wait_s <= min_s * MAX_JITTER_FACTOR


# --- Pauses after slow requests ------------------------------------------------------------------------


@pytest.mark.parametrize(("duration_s", "pauses"), [(1.9, 0), (10.0, 19)], ids=["fast", "slow"])
def test_slow_request_is_followed_by_a_random_pause(events: list[Any], duration_s: float, pauses: int) -> None:
    stop = FakeStop()
    retry = policy(stop)

    for _ in range(20):
        assert retry(FakeRequest(stop, duration_s=duration_s)) == "done"

    # Each request but the first waits for the pause after the request before it.
    assert len({*stop.waits}) == len(stop.waits) == pauses
    assert [event["event"] for event in events] == ["request.delayed"] * pauses
    # The longest pause is 6 times the time by which the request exceeded 2 s.
    assert not pauses or 0.0 <= min(stop.waits) < 10.0 < max(stop.waits) <= 48.0


def test_delay_after_a_slow_failure_is_longer() -> None:
    """The server can still be working on the request to which it did not respond in time."""
    stop = FakeStop()

    policy(stop, budget_s=7200.0)(FakeRequest(stop, [OUTAGE] * 8, duration_s=12.0))

    # The shortest wait is the duration of the request. Each failure doubles the longest wait, from 60 s up to 300 s.
    assert min(stop.waits) >= 12.0
    assert 120.0 < max(stop.waits) <= 300.0


def test_delay_after_a_slow_failure_to_connect_is_not_longer() -> None:
    """A slow failure to connect does not show that the server is overloaded: a firewall may drop the packets."""
    stop = FakeStop()

    policy(stop)(FakeRequest(stop, [UNSENT] * 4, duration_s=10.0))

    assert stop.waits[0] < 1.0
    assert max(stop.waits) <= 4.0 * MAX_JITTER_FACTOR


# --- The budget ----------------------------------------------------------------------------------------


def test_last_error_is_raised_when_the_budget_is_used_up() -> None:
    stop = FakeStop()
    errors = [TransientError("it is down", upstream="Headscale") for _ in range(1000)]
    request = FakeRequest(stop, errors)

    with pytest.raises(TransientError) as raised:
        policy(stop)(request)

    assert raised.value is errors[request.attempts - 1]
    # The rest of the budget was shorter than the longest delay.
    assert BUDGET_S - 15.0 * MAX_JITTER_FACTOR <= sum(stop.waits) < BUDGET_S


@pytest.mark.parametrize(
    ("budget_s", "duration_s", "attempts"),
    [
        pytest.param(BUDGET_S, 40.0, 3, id="duration of the requests"),
        pytest.param(3600.0, 0.0, 1 + RETRIES_PER_BUDGET, id="number of retries"),
    ],
)
def test_budget_limits_the_attempts(budget_s: float, duration_s: float, attempts: int) -> None:
    stop = FakeStop()
    # After a slow request that was not sent, there is no pause, which would use up the budget, too.
    request = FakeRequest(stop, repeat(UNSENT), duration_s=duration_s)

    with pytest.raises(TransientError):
        policy(stop, budget_s=budget_s)(request)

    assert request.attempts == attempts


def test_calls_share_one_budget_until_it_is_renewed() -> None:
    stop = FakeStop()
    retry = policy(stop)
    waits_s = []
    for is_renewed in (False, False, True):
        if is_renewed:
            retry.renew_budget()
        stop.waits.clear()
        with pytest.raises(TransientError):
            retry(FakeRequest(stop, repeat(OUTAGE)))
        waits_s.append(sum(stop.waits))

    first_s, second_s, renewed_s = waits_s
    # What the first call leaves of the budget is only enough for short delays.
    assert second_s < BUDGET_S - first_s
    assert BUDGET_S / 2 < renewed_s < BUDGET_S


def test_request_is_not_retried_if_the_retry_after_exceeds_the_budget() -> None:
    stop = FakeStop()

    with pytest.raises(TransientError):
        policy(stop)(FakeRequest(stop, [busy_error(retry_after_s=121)]))

    assert stop.waits == []


# --- Stops ---------------------------------------------------------------------------------------------


def test_stop_during_a_delay_ends_the_call() -> None:
    """Otherwise, the next attempt could change something after the stop."""
    stop = FakeStop(after_waits=2)
    request = FakeRequest(stop, repeat(OUTAGE))

    with pytest.raises(StoppedError):
        policy(stop)(request)

    assert request.attempts == len(stop.waits) == 2


def test_stop_during_a_pause_ends_the_call() -> None:
    stop = FakeStop(after_waits=1)
    retry = policy(stop)
    retry(FakeRequest(stop, duration_s=10.0))
    request = FakeRequest(stop)

    with pytest.raises(StoppedError):
        retry(request)

    assert request.attempts == 0


def test_failure_after_a_stop_is_not_retried() -> None:
    stop = FakeStop()
    stop.set()

    with pytest.raises(TransientError):
        policy(stop)(FakeRequest(stop, repeat(OUTAGE)))

    assert stop.waits == []
