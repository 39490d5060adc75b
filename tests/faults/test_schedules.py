"""Whatever goes wrong, in whatever order: what must never happen does not, and in the end the world is right.

A schedule that fails is shrunk by leaving steps out; the line that is printed makes it again:
add it to `SEEDS_THAT_ONCE_FAILED`.
"""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from tests.faults.engine import BrokenError, run, shrunk
from tests.faults.schedule import STEPS, Schedule

SCHEDULES = 500
SOAK = 10_000

SEEDS_THAT_ONCE_FAILED = [
    pytest.param(Schedule(237, (2, 8, 9, 10)), id="probe-restarts-a-tailscale-that-is-back-while-headscale-is-down"),
    pytest.param(Schedule(509), id="an-address-handed-out-again-while-its-last-owner-still-shows-it"),
    pytest.param(Schedule(1643), id="a-sidecar-that-starts-after-its-node-was-deleted"),
    pytest.param(Schedule(2078), id="a-clock-two-hours-behind-and-a-node-that-has-expired"),
    pytest.param(Schedule(2747), id="two-pods-that-see-no-interface"),
]


@pytest.mark.parametrize("schedule", SEEDS_THAT_ONCE_FAILED)
def test_what_once_went_wrong_does_not_again(schedule: Schedule) -> None:
    run(schedule)


def test_whatever_goes_wrong_nothing_is_lost_and_all_comes_right(pytestconfig: pytest.Config) -> None:
    soak = pytestconfig.getoption("--soak")

    @hypothesis.settings(
        max_examples=SOAK if soak else SCHEDULES,
        # The same schedules each time, but for a soak: a change is judged by what it changes.
        derandomize=not soak,
        database=None,
        deadline=None,
        # What fails is shrunk below, one step at a time: fewer runs, and the seed stays.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(seed=st.integers(0, 2**32 - 1), left_out=st.sampled_from((0, 0, 0, STEPS // 2)))
    def any_schedule(seed: int, left_out: int) -> None:
        schedule = Schedule(seed, tuple(range(STEPS - left_out)))
        try:
            run(schedule)
        except BrokenError as error:
            kind = str(error)[:8]
            least = shrunk(schedule, lambda shorter: _kind(shorter) == kind)
            pytest.fail(f"{error}\nagain: tests.faults.engine.run({least!r})")

    any_schedule()


def _kind(schedule: Schedule) -> str:
    """Which invariant a schedule breaks; "" for none."""
    try:
        run(schedule)
    except BrokenError as error:
        return str(error)[:8]
    return ""


def test_a_broken_invariant_is_shrunk_to_the_steps_that_break_it() -> None:
    """The shrinker leaves exactly what is needed."""
    least = shrunk(
        Schedule(1), lambda schedule: {3, 8} <= set(range(STEPS) if schedule.kept is None else schedule.kept)
    )
    assert least == Schedule(1, (3, 8))
