"""Repeat a pass until asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from lifecycle.runtime.loop import TICK_S, repeat
from tests.conftest import FakeStop

MANY = 20


class Passes:
    """Passes that take as long, and ask for such pauses, as a test says; the last pause repeats.

    Args:
        take_s: how long each pass itself takes.
    """

    def __init__(self, stop: FakeStop, *pauses_s: float, take_s: float = 0.0) -> None:
        self._stop = stop
        self._pauses_s = pauses_s
        self._take_s = take_s
        self.began_at: list[float] = []
        self.ended_at: list[float] = []

    def __call__(self) -> float:
        self.began_at.append(self._stop.now)
        if len(self.began_at) > MANY:
            pytest.fail("the loop does not wait")
        self._stop.now += self._take_s
        self.ended_at.append(self._stop.now)
        return self._pauses_s[min(len(self.began_at), len(self._pauses_s)) - 1]


def never() -> bool:
    return False


def answers(*values: bool) -> Callable[[], bool]:
    """Gives these one after another, then False for ever."""
    left = list(values)
    return lambda: left.pop(0) if left else False


def test_passes_follow_one_another_at_the_pace_they_ask_for() -> None:
    stop = FakeStop(after=12)
    passes = Passes(stop, 3.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 3.0, 6.0, 9.0]


def test_each_pass_says_anew_how_long_to_wait() -> None:
    stop = FakeStop(after=7)
    passes = Passes(stop, 1.0, 4.0, 2.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 1.0, 5.0]


def test_the_wait_begins_when_the_pass_has_ended() -> None:
    """A service that took its time to say "come back in 5 s" is left alone for 5 s, not for what is left of them."""
    stop = FakeStop(after=10)
    passes = Passes(stop, 5.0, take_s=10.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 15.0]
    assert passes.began_at[1] - passes.ended_at[0] == 5.0


@pytest.mark.parametrize("pause_s", [pytest.param(0.0, id="none"), pytest.param(-1.0, id="overdue")])
def test_a_pass_that_asks_for_no_pause_gets_none(pause_s: float) -> None:
    stop = FakeStop(after=3)
    passes = Passes(stop, pause_s, pause_s, 3.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 0.0, 0.0]


def test_a_wait_is_cut_into_ticks_and_ends_on_time() -> None:
    """The interface is looked at each second; the last piece is only what is left."""
    stop = FakeStop(after=3)

    repeat(Passes(stop, 2.5), stop=stop, wake=never, monotonic=stop.monotonic)

    assert stop.waits == [TICK_S, TICK_S, 0.5]


def test_waking_up_ends_the_wait() -> None:
    stop = FakeStop(after=4)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=answers(False, False, True), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 2.0]


def test_waking_up_once_wakes_once() -> None:
    stop = FakeStop(after=5)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=answers(True), monotonic=stop.monotonic)

    assert passes.began_at == [0.0, 0.0]
    assert stop.waits == [TICK_S] * 5


def test_a_stop_in_the_middle_of_a_wait_ends_it() -> None:
    stop = FakeStop(after=2)
    passes = Passes(stop, 60.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert len(passes.began_at) == 1
    assert stop.waits == [TICK_S, TICK_S]


def test_a_stop_during_a_pass_ends_the_loop_without_a_wait() -> None:
    stop = FakeStop()

    def one_pass() -> float:
        stop.set()
        return 60.0

    repeat(one_pass, stop=stop, wake=lambda: pytest.fail("nobody looks up any more"), monotonic=stop.monotonic)

    assert stop.waits == []


def test_a_stop_before_the_first_pass_leaves_no_pass() -> None:
    stop = FakeStop()
    stop.set()

    repeat(lambda: pytest.fail("no pass"), stop=stop, wake=never, monotonic=stop.monotonic)


@pytest.mark.parametrize("after", [1, 3])
def test_the_loop_ends_when_it_is_finished(after: int) -> None:
    """As `--once` needs it: no wait after the last pass."""
    stop = FakeStop()
    passes = Passes(stop, 1.0)

    repeat(
        passes,
        stop=stop,
        wake=never,
        monotonic=stop.monotonic,
        finished=lambda: len(passes.began_at) == after,
    )

    assert len(passes.began_at) == after
    assert len(stop.waits) == after - 1


def test_what_a_pass_raises_ends_the_loop() -> None:
    stop = FakeStop()

    def one_pass() -> float:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        repeat(one_pass, stop=stop, wake=never, monotonic=stop.monotonic)

    assert stop.waits == []


def test_a_failing_pass_that_says_so_by_its_pause_goes_on() -> None:
    """Failure and recovery are the pass's business: growing pauses, then the usual one."""
    stop = FakeStop(after=9)
    passes = Passes(stop, 1.0, 2.0, 4.0, 1.0)

    repeat(passes, stop=stop, wake=never, monotonic=stop.monotonic)

    assert [later - earlier for earlier, later in pairwise(passes.began_at)] == [1.0, 2.0, 4.0, 1.0]
