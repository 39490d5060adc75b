"""Test retries: exponential backoff, Retry-After, and the time budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
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
from lifecycle.runtime.retry import MAX_RETRIES, RetryBudget, no_retries, retrying
from tests.conftest import FakeStop

BUDGET = timedelta(minutes=2)

# Jitter multiplies a delay by at most this factor.
MAX_JITTER_FACTOR = 1.25


def outage(retry_after_s: float | None = None) -> TransientError:
    """Return an error that is retried."""
    retry_after = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    return TransientError("it is down", upstream="Headscale", retry_after=retry_after)


class Requests:
    """A function that raises one of these errors in each call, and then succeeds.

    Args:
        duration_s: how far each call advances the clock.
    """

    def __init__(
        self, errors: Iterable[Exception] = (), *, clock: FakeStop | None = None, duration_s: float = 0.0
    ) -> None:
        self._errors = iter(errors)
        self._clock = clock
        self._duration_s = duration_s
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self._clock is not None:
            self._clock.now += self._duration_s
        for error in self._errors:
            raise error
        return "done"


def endless(create_error: Callable[[], Exception]) -> Iterable[Exception]:
    while True:
        yield create_error()


def policy(stop: FakeStop) -> Any:
    """Return a retry policy with a budget of two minutes. Its waits advance the clock of the stop event."""
    return retrying(budget=RetryBudget(BUDGET, clock=stop.monotonic), stop=stop)


def test_success_is_not_retried() -> None:
    stop, requests = FakeStop(), Requests()

    assert policy(stop)(requests) == "done"
    assert (requests.count, stop.waits) == (1, [])


def test_transient_errors_are_retried(events: list[Any]) -> None:
    stop, requests = FakeStop(), Requests([outage(), outage(), outage()])

    assert policy(stop)(requests) == "done"
    assert requests.count == 4
    assert [event["event"] for event in events] == ["retry.scheduled"] * 3


def test_delays_grow() -> None:
    stop = FakeStop()

    policy(stop)(Requests([outage()] * 6))

    for wait_s, min_s in zip(stop.waits, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0], strict=True):
        assert min_s <= wait_s <= min_s * MAX_JITTER_FACTOR


@pytest.mark.parametrize(
    "error",
    [
        *(
            error("refused", upstream="Headscale")
            for error in (AuthError, NotFoundError, ConflictError, ResponseError, ApiError)
        ),
        LifecycleError("not an ApiError"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_not_retried(error: Exception, events: list[Any]) -> None:
    stop, requests = FakeStop(), Requests([error])

    with pytest.raises(type(error)) as raised:
        policy(stop)(requests)

    assert raised.value is error
    assert (requests.count, stop.waits, events) == (1, [], [])


def test_refusal_after_an_outage_is_raised() -> None:
    stop, requests = FakeStop(), Requests([outage(), AuthError("refused", upstream="Headscale")])

    with pytest.raises(AuthError):
        policy(stop)(requests)

    assert requests.count == 2


def test_last_error_is_raised_when_the_budget_is_used_up() -> None:
    stop = FakeStop()
    errors = [outage() for _ in range(1000)]
    requests = Requests(errors)

    with pytest.raises(TransientError) as raised:
        policy(stop)(requests)

    assert raised.value is errors[requests.count - 1]
    assert sum(stop.waits) < BUDGET.total_seconds()
    # The rest of the budget was shorter than the longest delay.
    assert sum(stop.waits) + 15.0 * MAX_JITTER_FACTOR >= BUDGET.total_seconds()


def test_duration_of_requests_counts_towards_the_budget() -> None:
    stop = FakeStop()
    requests = Requests(endless(outage), clock=stop, duration_s=40.0)

    with pytest.raises(TransientError):
        policy(stop)(requests)

    assert stop.now < BUDGET.total_seconds() + 40.0


def test_number_of_retries_is_limited() -> None:
    """A failed request can cost the server as much as a successful request."""
    stop, requests = FakeStop(), Requests(endless(outage))

    with pytest.raises(TransientError):
        retrying(budget=RetryBudget(timedelta(hours=1), clock=stop.monotonic), stop=stop)(requests)

    assert requests.count == 1 + MAX_RETRIES


def test_slow_request_is_followed_by_a_random_pause(events: list[Any]) -> None:
    stop = FakeStop()
    retry = policy(stop)

    for _ in range(20):
        retry(Requests(clock=stop, duration_s=10.0))

    # There is a pause before each request except the first.
    assert len({*stop.waits}) == len(stop.waits) == 19
    # The longest pause is 6 times the time by which the request exceeded 2 s.
    assert 0.0 <= min(stop.waits) < 10.0 < max(stop.waits) <= 48.0
    assert [event["event"] for event in events] == ["request.delayed"] * 19


def test_fast_request_is_not_followed_by_a_pause() -> None:
    stop = FakeStop()
    retry = policy(stop)

    for _ in range(20):
        retry(Requests(clock=stop, duration_s=1.9))

    assert stop.waits == []


def test_delay_after_a_slow_failure_is_longer() -> None:
    """The server can still be working on the request to which it did not respond in time."""
    stop = FakeStop()
    retry = retrying(budget=RetryBudget(timedelta(hours=2), clock=stop.monotonic), stop=stop)

    retry(Requests([outage()] * 8, clock=stop, duration_s=12.0))

    assert min(stop.waits) >= 12.0
    assert max(stop.waits) > 120.0
    assert max(stop.waits) <= 300.0


def test_delay_after_a_slow_failure_to_connect_is_not_longer() -> None:
    """A slow failure to connect is no sign of an overloaded server. A firewall that drops packets can be the cause."""
    stop = FakeStop()

    policy(stop)(Requests([TransientError("", upstream="Headscale", sent=False)] * 4, clock=stop, duration_s=10.0))

    assert stop.waits[0] < 1.0
    assert max(stop.waits) <= 4.0 * MAX_JITTER_FACTOR


def test_no_request_is_sent_if_a_stop_ends_the_pause() -> None:
    stop = FakeStop(after=1)
    retry = policy(stop)
    retry(Requests(clock=stop, duration_s=10.0))
    requests = Requests()

    with pytest.raises(StoppedError):
        retry(requests)

    assert requests.count == 0


def test_requests_share_one_budget() -> None:
    stop = FakeStop()
    retry = policy(stop)
    with pytest.raises(TransientError):
        retry(Requests(endless(outage)))
    waits_before = len(stop.waits)

    with pytest.raises(TransientError):
        retry(Requests(endless(outage)))

    # The rest of the budget is only enough for short delays.
    assert sum(stop.waits) < BUDGET.total_seconds()
    assert len(stop.waits) - waits_before < waits_before


def test_delay_is_at_least_the_retry_after() -> None:
    stop = FakeStop()

    policy(stop)(Requests([outage(retry_after_s=60)]))

    assert 60.0 <= stop.waits[0] <= 60.0 * MAX_JITTER_FACTOR


def test_short_retry_after_does_not_shorten_the_delay() -> None:
    """Retry-After is a minimum. A server that has been overloaded for long needs longer delays."""
    stop = FakeStop()

    policy(stop)(Requests([outage(), outage(), outage(), outage(), outage(retry_after_s=1)]))

    assert stop.waits[4] >= 8.0


def test_renewed_budget_starts_again() -> None:
    stop = FakeStop()
    budget = RetryBudget(BUDGET, clock=stop.monotonic)
    retry = retrying(budget=budget, stop=stop)
    stop.now += 900.0
    with pytest.raises(TransientError):
        retry(Requests([outage()]))

    budget.renew()

    assert retry(Requests([outage()])) == "done"
    with pytest.raises(TransientError):
        retry(Requests(endless(outage)))
    assert BUDGET.total_seconds() / 2 < sum(stop.waits) < BUDGET.total_seconds()


def test_request_is_not_retried_if_the_retry_after_exceeds_the_budget() -> None:
    stop, requests = FakeStop(), Requests([outage(retry_after_s=121)])

    with pytest.raises(TransientError):
        policy(stop)(requests)

    assert (requests.count, stop.waits) == (1, [])


def test_nothing_is_sent_after_a_stop(events: list[Any]) -> None:
    """The next attempt could be a write."""
    stop, requests = FakeStop(after=2), Requests(endless(outage))

    with pytest.raises(StoppedError):
        policy(stop)(requests)

    assert requests.count == 2
    assert len(stop.waits) == 2


def test_failure_after_a_stop_is_not_retried() -> None:
    stop, requests = FakeStop(), Requests(endless(outage))
    stop.set()

    with pytest.raises(TransientError):
        policy(stop)(requests)

    assert (requests.count, stop.waits) == (1, [])


def test_each_retry_is_logged(events: list[Any]) -> None:
    stop = FakeStop()

    policy(stop)(Requests([outage(retry_after_s=2), outage()]))

    assert [event["attempt"] for event in events] == [1, 2]
    assert {event["error"] for event in events} == {"it is down"}
    assert {event["log_level"] for event in events} == {"warning"}
    assert [event["wait_s"] for event in events] == [round(wait_s, 1) for wait_s in stop.waits]


def test_policy_without_retries(events: list[Any]) -> None:
    requests = Requests([outage()])

    with pytest.raises(TransientError, match="it is down"):
        no_retries()(requests)

    assert (requests.count, events) == (1, [])
    assert no_retries()(Requests()) == "done"
