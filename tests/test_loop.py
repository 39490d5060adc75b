"""The loop of passes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from lifecycle.runtime.loop import repeat
from tests.conftest import FakeStop

MANY = 20


class Passes:
    """Passes that return these waits; the last one repeats.

    Args:
        take_s: the duration of each pass.
    """

    def __init__(self, stop: FakeStop, *waits_s: float, take_s: float = 0.0) -> None:
        self._stop = stop
        self._waits_s = waits_s
        self._take_s = take_s
        self.began_at: list[float] = []
        self.ended_at: list[float] = []

    def __call__(self) -> float:
        self.began_at.append(self._stop.now)
        if len(self.began_at) > MANY:
            pytest.fail("the loop does not wait")
        self._stop.now += self._take_s
        self.ended_at.append(self._stop.now)
        return self._waits_s[min(len(self.began_at), len(self._waits_s)) - 1]


def never() -> bool:
    return False


def returning(*values: bool) -> Callable[[], bool]:
    """Return a function that returns these values, and then False."""
    left = list(values)
    return lambda: left.pop(0) if left else False


def ticking(stop: FakeStop) -> Callable[[float], object]:
    """Return a pause that ends at least once a second."""
    return lambda seconds: stop.wait(min(seconds, 1.0))


def test_passes_follow_at_the_returned_interval() -> None:
    stop = FakeStop(after=12)
    passes = Passes(stop, 3.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 3.0, 6.0, 9.0]


def test_each_pass_determines_its_wait() -> None:
    stop = FakeStop(after=7)
    passes = Passes(stop, 1.0, 4.0, 2.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 1.0, 5.0]


def test_wait_begins_at_the_end_of_the_pass() -> None:
    """A Retry-After counts from the response."""
    stop = FakeStop(after=10)
    passes = Passes(stop, 5.0, take_s=10.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 15.0]
    assert passes.began_at[1] - passes.ended_at[0] == 5.0


@pytest.mark.parametrize("wait_s", [pytest.param(0.0, id="none"), pytest.param(-1.0, id="overdue")])
def test_pass_without_a_wait(wait_s: float) -> None:
    stop = FakeStop(after=3)
    passes = Passes(stop, wait_s, wait_s, 3.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 0.0, 0.0]


def test_a_pause_that_ends_early_is_continued() -> None:
    stop = FakeStop(after=3)

    repeat(Passes(stop, 2.5), stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert stop.waits == [1.0, 1.0, 0.5]


def test_wake_ends_the_wait() -> None:
    stop = FakeStop(after=4)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=returning(False, False, True), pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 2.0]


def test_wake_ends_one_wait_only() -> None:
    stop = FakeStop(after=5)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=returning(True), pause=ticking(stop), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 0.0]
    assert stop.waits == [1.0] * 5


def test_stop_ends_the_wait() -> None:
    stop = FakeStop(after=2)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert len(passes.began_at) == 1
    assert stop.waits == [1.0, 1.0]


def test_stop_during_a_pass_ends_the_loop() -> None:
    stop = FakeStop()

    def one_pass() -> float:
        stop.set()
        return 60.0

    repeat(
        one_pass,
        stop=stop,
        wake=lambda: pytest.fail("called after the stop"),
        pause=ticking(stop),
        monotonic=stop.monotonic,
    )

    assert stop.waits == []


def test_stop_before_the_first_pass_ends_the_loop() -> None:
    stop = FakeStop()
    stop.set()

    repeat(lambda: pytest.fail("no pass"), stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)


@pytest.mark.parametrize("after", [1, 3])
def test_loop_ends_when_finished(after: int) -> None:
    """Without a wait, for `--once`."""
    stop = FakeStop()
    passes = Passes(stop, 1.0)

    repeat(
        passes,
        stop=stop,
        wake=never,
        pause=ticking(stop),
        monotonic=stop.monotonic,
        finished=lambda: len(passes.began_at) == after,
    )

    assert len(passes.began_at) == after
    assert len(stop.waits) == after - 1


def test_exception_ends_the_loop() -> None:
    stop = FakeStop()

    def one_pass() -> float:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        repeat(one_pass, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert stop.waits == []


def test_intervals_may_differ() -> None:
    """As after failures and a recovery."""
    stop = FakeStop(after=9)
    passes = Passes(stop, 1.0, 2.0, 4.0, 1.0)

    repeat(passes, stop=stop, wake=never, pause=ticking(stop), monotonic=stop.monotonic)

    assert [later - earlier for earlier, later in pairwise(passes.began_at)] == [1.0, 2.0, 4.0, 1.0]
