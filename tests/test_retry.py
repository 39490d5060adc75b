"""Retries: exponential backoff, Retry-After, and the time budget."""

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
from lifecycle.runtime.retry import RetryBudget, once, retrying
from tests.conftest import FakeStop

BUDGET = timedelta(minutes=2)

# The most that jitter lengthens a delay.
SPREAD = 1.25


def down(retry_after_s: float | None = None) -> TransientError:
    retry_after = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    return TransientError("it is down", upstream="Headscale", retry_after=retry_after)


class Calls:
    """A call that raises these errors one by one, and then succeeds."""

    def __init__(self, errors: Iterable[Exception] = (), *, clock: FakeStop | None = None, take_s: float = 0.0) -> None:
        self._errors = iter(errors)
        self._clock = clock
        self._take_s = take_s
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self._clock is not None:
            self._clock.now += self._take_s
        for error in self._errors:
            raise error
        return "done"


def endless(make: Callable[[], Exception]) -> Iterable[Exception]:
    while True:
        yield make()


def policy(stop: FakeStop) -> Any:
    """Return the policy, waiting on a stop that does not sleep."""
    return retrying(budget=RetryBudget(BUDGET, clock=stop.monotonic), stop=stop)


def test_success_is_not_retried() -> None:
    stop, calls = FakeStop(), Calls()

    assert policy(stop)(calls) == "done"
    assert (calls.count, stop.waits) == (1, [])


def test_transient_errors_are_retried(events: list[Any]) -> None:
    stop, calls = FakeStop(), Calls([down(), down(), down()])

    assert policy(stop)(calls) == "done"
    assert calls.count == 4
    assert [event["event"] for event in events] == ["retry.scheduled"] * 3


def test_delays_grow() -> None:
    stop = FakeStop()

    policy(stop)(Calls([down()] * 6))

    for wait_s, least_s in zip(stop.waits, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0], strict=True):
        assert least_s <= wait_s <= least_s * SPREAD


@pytest.mark.parametrize("kind", [AuthError, NotFoundError, ConflictError, ResponseError, ApiError])
def test_permanent_error_is_raised_at_once(kind: type[ApiError], events: list[Any]) -> None:
    stop, calls = FakeStop(), Calls([kind("refused", upstream="Headscale")])

    with pytest.raises(kind, match="refused"):
        policy(stop)(calls)

    assert (calls.count, stop.waits, events) == (1, [], [])


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug"), LifecycleError("no ApiError")])
def test_bug_is_raised_at_once(bug: Exception) -> None:
    stop, calls = FakeStop(), Calls([bug])

    with pytest.raises(type(bug)):
        policy(stop)(calls)

    assert calls.count == 1


def test_refusal_after_an_outage_is_raised() -> None:
    stop, calls = FakeStop(), Calls([down(), AuthError("refused", upstream="Headscale")])

    with pytest.raises(AuthError):
        policy(stop)(calls)

    assert calls.count == 2


def test_last_error_is_raised_when_the_budget_is_used_up() -> None:
    stop = FakeStop()
    errors = [down() for _ in range(1000)]
    calls = Calls(errors)

    with pytest.raises(TransientError) as raised:
        policy(stop)(calls)

    assert raised.value is errors[calls.count - 1]
    assert sum(stop.waits) < BUDGET.total_seconds()
    # The rest of the budget was too short for another delay.
    assert sum(stop.waits) + 15.0 * SPREAD >= BUDGET.total_seconds()


def test_duration_of_the_calls_counts() -> None:
    """An upstream that hangs is given up in bounded time."""
    stop = FakeStop()
    calls = Calls(endless(down), clock=stop, take_s=40.0)

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert stop.now < BUDGET.total_seconds() + 40.0


def test_number_of_retries_is_limited() -> None:
    """Each of them can cost the upstream as much as a request that succeeds."""
    stop, calls = FakeStop(), Calls(endless(down))

    with pytest.raises(TransientError):
        retrying(budget=RetryBudget(timedelta(hours=1), clock=stop.monotonic), stop=stop)(calls)

    assert calls.count == 13


def test_slow_call_is_followed_by_a_random_pause(events: list[Any]) -> None:
    stop = FakeStop()
    shared = policy(stop)

    for _ in range(20):
        shared(Calls(clock=stop, take_s=10.0))

    assert len({*stop.waits}) == len(stop.waits) == 19
    assert 0.0 <= min(stop.waits) < 10.0 < max(stop.waits) <= 48.0
    assert [event["event"] for event in events] == ["request.delayed"] * 19


def test_fast_calls_are_not_delayed() -> None:
    stop = FakeStop()
    shared = policy(stop)

    for _ in range(20):
        shared(Calls(clock=stop, take_s=1.9))

    assert stop.waits == []


def test_slow_failure_is_retried_later_each_time() -> None:
    """The upstream still works on the request that it did not respond to."""
    stop = FakeStop()
    shared = retrying(budget=RetryBudget(timedelta(hours=2), clock=stop.monotonic), stop=stop)

    shared(Calls([down()] * 8, clock=stop, take_s=12.0))

    assert min(stop.waits) >= 12.0
    assert max(stop.waits) > 120.0
    assert max(stop.waits) <= 300.0


def test_failed_connection_is_no_sign_of_overload() -> None:
    """An address that drops packets, for example."""
    stop = FakeStop()

    policy(stop)(Calls([TransientError("", upstream="Headscale", sent=False)] * 4, clock=stop, take_s=10.0))

    assert stop.waits[0] < 1.0
    assert max(stop.waits) <= 4.0 * SPREAD


def test_pause_ends_with_a_stop() -> None:
    stop = FakeStop(after=1)
    shared = policy(stop)
    shared(Calls(clock=stop, take_s=10.0))
    calls = Calls()

    with pytest.raises(StoppedError):
        shared(calls)

    assert calls.count == 0


def test_calls_share_one_budget() -> None:
    """Two minutes in total, not for each request."""
    stop = FakeStop()
    shared = policy(stop)
    with pytest.raises(TransientError):
        shared(Calls(endless(down)))
    waited = len(stop.waits)

    with pytest.raises(TransientError):
        shared(Calls(endless(down)))

    # The rest of the budget is shorter than the longest delay, but not than the first ones.
    assert sum(stop.waits) < BUDGET.total_seconds()
    assert len(stop.waits) - waited < waited


def test_retry_after_is_waited_for() -> None:
    stop = FakeStop()

    policy(stop)(Calls([down(retry_after_s=60)]))

    assert 60.0 <= stop.waits[0] <= 60.0 * SPREAD


def test_short_retry_after_does_not_shorten_the_delay() -> None:
    """It is a minimum, and an upstream that is overloaded for long needs more."""
    stop = FakeStop()

    policy(stop)(Calls([down(), down(), down(), down(), down(retry_after_s=1)]))

    assert stop.waits[4] >= 8.0


def test_renewed_budget_starts_again() -> None:
    stop = FakeStop()
    budget = RetryBudget(BUDGET, clock=stop.monotonic)
    shared = retrying(budget=budget, stop=stop)
    stop.now += 900.0
    with pytest.raises(TransientError):
        shared(Calls([down()]))

    budget.renew()

    assert shared(Calls([down()])) == "done"
    with pytest.raises(TransientError):
        shared(Calls(endless(down)))
    assert BUDGET.total_seconds() / 2 < sum(stop.waits) < BUDGET.total_seconds()


def test_retry_after_beyond_the_budget_is_not_waited_for() -> None:
    stop, calls = FakeStop(), Calls([down(retry_after_s=121)])

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert (calls.count, stop.waits) == (1, [])


def test_nothing_is_sent_after_a_stop(events: list[Any]) -> None:
    """The next attempt may be a write."""
    stop, calls = FakeStop(after=2), Calls(endless(down))

    with pytest.raises(StoppedError):
        policy(stop)(calls)

    assert calls.count == 2
    assert len(stop.waits) == 2


def test_failure_after_a_stop_is_not_retried() -> None:
    stop, calls = FakeStop(), Calls(endless(down))
    stop.set()

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert (calls.count, stop.waits) == (1, [])


def test_each_retry_is_logged(events: list[Any]) -> None:
    stop = FakeStop()

    policy(stop)(Calls([down(retry_after_s=2), down()]))

    assert [event["attempt"] for event in events] == [1, 2]
    assert {event["error"] for event in events} == {"it is down"}
    assert {event["log_level"] for event in events} == {"warning"}
    assert [event["wait_s"] for event in events] == [round(wait_s, 1) for wait_s in stop.waits]


def test_policy_without_retries(events: list[Any]) -> None:
    calls = Calls([down()])

    with pytest.raises(TransientError, match="it is down"):
        once()(calls)

    assert (calls.count, events) == (1, [])
    assert once()(Calls()) == "done"
