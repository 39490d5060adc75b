"""Test the loop that runs the passes of a command: when a pass starts, and what ends a wait or the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lifecycle.runtime.loop import repeat
from tests.conftest import FakeStop

MAX_PASSES = 20


class Passes:
    """A function that runs a simulated pass, and returns the wait after it.

    Args:
        waits_s: the wait after each pass; the last one repeats.
        duration_s: the duration of each pass.
    """

    def __init__(self, stop: FakeStop, *waits_s: float, duration_s: float = 0.0) -> None:
        self._stop = stop
        self._waits_s = waits_s
        self._duration_s = duration_s
        self.started_at: list[float] = []

    def __call__(self) -> float:
        self.started_at.append(self._stop.now)
        if len(self.started_at) > MAX_PASSES:
            pytest.fail("the loop does not wait")
        self._stop.now += self._duration_s
        return self._waits_s[min(len(self.started_at), len(self._waits_s)) - 1]


def run(
    one_pass: Callable[[], float],
    stop: FakeStop,
    *,
    should_wake: Callable[[], bool] = lambda: False,
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run the loop with pauses of at most a second."""
    repeat(
        one_pass,
        stop=stop,
        should_wake=should_wake,
        pause=lambda seconds: stop.wait(min(seconds, 1.0)),
        monotonic=stop.monotonic,
        finished=finished,
    )


def returning(*values: bool) -> Callable[[], bool]:
    """Return a function that returns these values, and then False."""
    remaining = list(values)
    return lambda: remaining.pop(0) if remaining else False


def test_each_pass_determines_the_wait_after_it() -> None:
    """After a wait of 0 or less, the next pass starts immediately."""
    stop = FakeStop(after_waits=8)

    passes = Passes(stop, 3.0, 0.0, -1.0, 2.5)
    run(passes, stop)

    assert passes.started_at == [0.0, 3.0, 3.0, 3.0, 5.5]
    assert stop.waits == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0]


def test_wait_begins_at_the_end_of_the_pass() -> None:
    """Otherwise, the next pass could start earlier than a Retry-After in a response allows."""
    stop = FakeStop(after_waits=10)
    passes = Passes(stop, 5.0, duration_s=10.0)

    run(passes, stop)

    assert passes.started_at == [0.0, 15.0]


def test_should_wake_ends_one_wait() -> None:
    """The loop calls `should_wake` before each pause. When it returns True, the next pass starts."""
    stop = FakeStop(after_waits=5)
    passes = Passes(stop, 60.0)

    run(passes, stop, should_wake=returning(False, False, True))

    assert passes.started_at == [0.0, 2.0]
    assert stop.waits == [1.0] * 5


def test_stop_during_a_pass_ends_the_loop() -> None:
    stop = FakeStop()

    def one_pass() -> float:
        stop.set()
        return 60.0

    run(one_pass, stop, should_wake=lambda: pytest.fail("called after the stop"))

    assert stop.waits == []


def test_stop_before_the_first_pass_ends_the_loop() -> None:
    stop = FakeStop()
    stop.set()

    run(lambda: pytest.fail("a pass started"), stop)


@pytest.mark.parametrize("passes_to_run", [1, 3])
def test_finished_ends_the_loop_without_a_wait(passes_to_run: int) -> None:
    """`dns-watch --once` uses `finished`."""
    stop = FakeStop()
    passes = Passes(stop, 1.0)

    run(passes, stop, finished=lambda: len(passes.started_at) == passes_to_run)

    assert len(passes.started_at) == passes_to_run
    assert len(stop.waits) == passes_to_run - 1


def test_exception_ends_the_loop() -> None:
    stop = FakeStop()
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, stop)
    assert stop.waits == []
