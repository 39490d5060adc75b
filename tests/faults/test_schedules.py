"""Whatever goes wrong, in whatever order: what must never happen does not, and in the end the world is right.

A schedule that fails is shrunk by leaving steps out, and printed: once_failed.json keeps it under a name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from tests.faults.engine import BrokenError, run, shrunk
from tests.faults.schedule import STEPS, Schedule, drawn, parsed

SCHEDULES = 504
SOAK = 10_000

# Parts that several processes share among them.
SHARES = 8
SEEDS = 2**32 // SHARES

ONCE_FAILED: dict[str, Any] = json.loads(Path(__file__).with_name("once_failed.json").read_text())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("values", [pytest.param(values, id=name) for name, values in ONCE_FAILED.items()])
def test_what_once_went_wrong_does_not_again(values: dict[str, Any]) -> None:
    run(parsed(values))


# Who is killed closes no file.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("share", range(SHARES))
def test_whatever_goes_wrong_nothing_is_lost_and_all_comes_right(share: int, pytestconfig: pytest.Config) -> None:
    soak = pytestconfig.getoption("--soak")

    @hypothesis.settings(
        max_examples=(SOAK if soak else SCHEDULES) // SHARES,
        # The same schedules each time, but for a soak: a change is judged by what it changes.
        derandomize=not soak,
        database=None,
        deadline=None,
        # What fails is shrunk below, one step at a time: fewer runs, and the seed stays.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(
        seed=st.integers(share * SEEDS, (share + 1) * SEEDS - 1), left_out=st.sampled_from((0, 0, 0, STEPS // 2))
    )
    def any_schedule(seed: int, left_out: int) -> None:
        schedule = drawn(seed, left_out=left_out)
        try:
            run(schedule)
        except BrokenError as error:
            kind = str(error)[:8]
            least = shrunk(schedule, lambda shorter: _kind(shorter) == kind)
            pytest.fail(f"{error}\nseed {seed}, for once_failed.json:\n{least.text()}")

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
    schedule = drawn(1)
    needed = (schedule.steps[3], schedule.steps[8])
    assert shrunk(schedule, lambda shorter: set(needed) <= set(shorter.steps)).steps == needed


def test_a_schedule_is_read_as_it_was_written() -> None:
    assert parsed(json.loads(drawn(1).text())) == drawn(1)
