"""Random schedules of faults: the guarantees hold during each of them, and afterwards everything gets in sync.

If a schedule fails, the test prints its shortest form. regressions.json keeps the schedules that found a bug.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

from tests.faults.engine import run, shrunk
from tests.faults.invariants import BrokenError
from tests.faults.schedule import Schedule, from_json, random_schedule, with_further_names

SCHEDULES = 504
SCHEDULES_OF_DEFAULT_TIER = 20

FURTHER_NAMES_SCHEDULES = 100
FURTHER_NAMES_SCHEDULES_OF_DEFAULT_TIER = 6

# The new seeds of a soak test, which are divided among this many test cases so that several processes can run them.
SOAK_SCHEDULES = 10_000
SOAK_CASES = 8

REGRESSIONS: dict[str, Any] = json.loads(Path(__file__).with_name("regressions.json").read_text())

# A killed process does not close its files.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.mark.parametrize("values", REGRESSIONS.values(), ids=REGRESSIONS)
def test_schedule_that_found_a_bug_passes(values: dict[str, Any]) -> None:
    run(from_json(values))


@pytest.mark.default_cases(SCHEDULES_OF_DEFAULT_TIER)
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_guarantees_hold_and_the_workload_recovers(seed: int) -> None:
    check(random_schedule(seed))


@pytest.mark.default_cases(FURTHER_NAMES_SCHEDULES_OF_DEFAULT_TIER)
@pytest.mark.parametrize("seed", range(FURTHER_NAMES_SCHEDULES))
def test_guarantees_hold_with_further_names(seed: int) -> None:
    check(with_further_names(random_schedule(seed)))


@pytest.mark.full
@pytest.mark.parametrize("_case", range(SOAK_CASES))
def test_guarantees_hold_for_new_seeds(_case: int, pytestconfig: pytest.Config) -> None:
    for _ in range(SOAK_SCHEDULES // SOAK_CASES if pytestconfig.getoption("--soak") else 1):
        schedule = random_schedule(SystemRandom().getrandbits(32))
        check(schedule)
        check(with_further_names(schedule))


def check(schedule: Schedule) -> None:
    """Run a schedule. If it fails, fail with its shortest form that breaks the same invariant."""
    error = error_of(schedule)
    if error:
        # Messages start with the invariant, such as "Never 1:".
        shortest = shrunk(schedule, lambda shorter: error_of(shorter)[:8] == error[:8])
        pytest.fail(f"{error}\nseed {schedule.seed}, for regressions.json:\n{shortest.text()}")


def error_of(schedule: Schedule) -> str:
    """Run a schedule, and return which invariant it breaks; "" for none."""
    try:
        run(schedule)
    except BrokenError as error:
        return str(error)
    return ""


def test_shrunk_schedule_has_only_the_steps_that_fail() -> None:
    schedule = random_schedule(1)
    needed = (schedule.steps[3], schedule.steps[8])
    assert shrunk(schedule, lambda shorter: set(needed) <= set(shorter.steps)).steps == needed


def test_schedule_is_parsed_as_it_was_written() -> None:
    assert from_json(json.loads(random_schedule(1).text())) == random_schedule(1)
