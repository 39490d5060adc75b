"""The one retry policy: growing pauses, a service's own wish first, an end."""

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

PATIENCE = timedelta(minutes=2)

# By how much jitter may lengthen a pause.
SPREAD = 1.25


def down(retry_after_s: float | None = None) -> TransientError:
    retry_after = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    return TransientError("it is down", upstream="Headscale", retry_after=retry_after)


class Calls:
    """A call that fails with these errors, one a time, and then succeeds."""

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


def for_ever(make: Callable[[], Exception]) -> Iterable[Exception]:
    while True:
        yield make()


def policy(stop: FakeStop, patience: timedelta = PATIENCE) -> Any:
    """The policy, its waits on a stop that never sleeps."""
    return retrying(patience=RetryBudget(patience, clock=stop.monotonic), stop=stop)


def test_what_works_at_once_is_called_once() -> None:
    stop, calls = FakeStop(), Calls()

    assert policy(stop)(calls) == "done"
    assert (calls.count, stop.waits) == (1, [])


def test_a_passing_trouble_is_waited_out(events: list[Any]) -> None:
    stop, calls = FakeStop(), Calls([down(), down(), down()])

    assert policy(stop)(calls) == "done"
    assert calls.count == 4
    assert [event["event"] for event in events] == ["retry.scheduled"] * 3


def test_pauses_grow() -> None:
    stop = FakeStop()

    policy(stop)(Calls([down()] * 6))

    for wait_s, least_s in zip(stop.waits, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0], strict=True):
        assert least_s <= wait_s <= least_s * SPREAD


@pytest.mark.parametrize("kind", [AuthError, NotFoundError, ConflictError, ResponseError, ApiError])
def test_what_no_second_try_would_mend_is_raised_at_once(kind: type[ApiError], events: list[Any]) -> None:
    stop, calls = FakeStop(), Calls([kind("refused", upstream="Headscale")])

    with pytest.raises(kind, match="refused"):
        policy(stop)(calls)

    assert (calls.count, stop.waits, events) == (1, [], [])


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug"), LifecycleError("no ApiError")])
def test_a_bug_is_no_trouble_of_a_service(bug: Exception) -> None:
    stop, calls = FakeStop(), Calls([bug])

    with pytest.raises(type(bug)):
        policy(stop)(calls)

    assert calls.count == 1


def test_trouble_then_refusal_ends_with_the_refusal() -> None:
    stop, calls = FakeStop(), Calls([down(), AuthError("refused", upstream="Headscale")])

    with pytest.raises(AuthError):
        policy(stop)(calls)

    assert calls.count == 2


def test_it_gives_up_in_time_and_raises_the_last_error_itself() -> None:
    stop = FakeStop()
    errors = [down() for _ in range(1000)]
    calls = Calls(errors)

    with pytest.raises(TransientError) as raised:
        policy(stop)(calls)

    assert raised.value is errors[calls.count - 1]
    assert sum(stop.waits) < PATIENCE.total_seconds()
    # It did use its time: what was left was too short for another pause.
    assert sum(stop.waits) + 15.0 * SPREAD >= PATIENCE.total_seconds()


def test_the_time_that_the_calls_themselves_take_counts() -> None:
    """Headscale that hangs for 10 s a call is given up as soon as one that refuses at once."""
    stop = FakeStop()
    calls = Calls(for_ever(down), clock=stop, take_s=50.0)

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert calls.count == 3
    assert stop.now < PATIENCE.total_seconds() + 50.0


def test_several_calls_share_one_patience() -> None:
    """Two minutes in all, not two minutes for each request."""
    stop = FakeStop()
    shared = policy(stop)
    with pytest.raises(TransientError):
        shared(Calls(for_ever(down)))
    waited = len(stop.waits)

    with pytest.raises(TransientError):
        shared(Calls(for_ever(down)))

    # What is left of the time is less than the longest pause; the first ones still fit.
    assert sum(stop.waits) < PATIENCE.total_seconds()
    assert len(stop.waits) - waited < waited


def test_a_retry_after_is_obeyed_in_full() -> None:
    stop = FakeStop()

    policy(stop)(Calls([down(retry_after_s=60)]))

    assert 60.0 <= stop.waits[0] <= 60.0 * SPREAD


def test_a_short_retry_after_shortens_the_pause() -> None:
    """The service knows best; but it is never hammered."""
    stop = FakeStop()

    policy(stop)(Calls([down(), down(), down(), down(), down(retry_after_s=1), down(retry_after_s=0)]))

    assert 1.0 <= stop.waits[4] <= SPREAD
    assert 0.5 <= stop.waits[5] <= 0.5 * SPREAD


def test_a_patience_that_is_renewed_begins_anew() -> None:
    """What comes after a wait that was longer than all of it is tried again all the same."""
    stop = FakeStop()
    patience = RetryBudget(PATIENCE, clock=stop.monotonic)
    shared = retrying(patience=patience, stop=stop)
    stop.now += 900.0
    with pytest.raises(TransientError):
        shared(Calls([down()]))

    patience.renew()

    assert shared(Calls([down()])) == "done"
    with pytest.raises(TransientError):
        shared(Calls(for_ever(down)))
    assert PATIENCE.total_seconds() / 2 < sum(stop.waits) < PATIENCE.total_seconds()


def test_a_retry_after_beyond_the_patience_is_not_waited_for() -> None:
    stop, calls = FakeStop(), Calls([down(retry_after_s=121)])

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert (calls.count, stop.waits) == (1, [])


def test_a_stop_in_the_middle_of_a_wait_ends_it_and_nothing_is_sent_any_more(events: list[Any]) -> None:
    """What is tried again may be a write: once asked to stop, none is begun."""
    stop, calls = FakeStop(after=2), Calls(for_ever(down))

    with pytest.raises(StoppedError):
        policy(stop)(calls)

    assert calls.count == 2
    assert len(stop.waits) == 2


def test_a_stop_before_a_failure_leaves_no_further_try() -> None:
    stop, calls = FakeStop(), Calls(for_ever(down))
    stop.set()

    with pytest.raises(TransientError):
        policy(stop)(calls)

    assert (calls.count, stop.waits) == (1, [])


def test_each_wait_is_one_event_that_says_why(events: list[Any]) -> None:
    stop = FakeStop()

    policy(stop)(Calls([down(retry_after_s=2), down()]))

    assert [event["attempt"] for event in events] == [1, 2]
    assert {event["error"] for event in events} == {"it is down"}
    assert {event["log_level"] for event in events} == {"warning"}
    assert [event["wait_s"] for event in events] == [round(wait_s, 1) for wait_s in stop.waits]


def test_once_means_once(events: list[Any]) -> None:
    calls = Calls([down()])

    with pytest.raises(TransientError, match="it is down"):
        once()(calls)

    assert (calls.count, events) == (1, [])
    assert once()(Calls()) == "done"
