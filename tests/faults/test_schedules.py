"""Test the commands with random schedules: sequences of faults and events, each generated from a seed.

During a schedule, the guarantees in docs/architecture.md must hold. After it, the record must become in sync again.

If a schedule fails, the test removes the steps that are not necessary for the failure, and prints the shorter schedule.
The file regressions.json contains such shorter schedules, which found bugs in the past. The module `schedule` explains
its fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

from tests.faults.engine import run, shrunk
from tests.faults.invariants import BrokenError
from tests.faults.schedule import Schedule, from_mapping, random_schedule, with_further_names

# The numbers of schedules in a full run of the tests, and in a default run.
SCHEDULES = 504
SCHEDULES_BY_DEFAULT = 20

# Further names are names of a workload in addition to its hostname: aliases, and names that workloads share.
FURTHER_NAMES_SCHEDULES = 100
FURTHER_NAMES_SCHEDULES_BY_DEFAULT = 6

# A soak test runs this many schedules with new seeds. They are divided among test cases, so that several processes can
# run them.
SOAK_SCHEDULES = 10_000
SOAK_CASES = 8

REGRESSIONS: dict[str, Any] = json.loads(Path(__file__).with_name("regressions.json").read_text())

# Some schedules kill a simulated process, which then leaves files open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.mark.parametrize("values", REGRESSIONS.values(), ids=REGRESSIONS)
def test_schedule_that_found_a_bug_passes(values: dict[str, Any]) -> None:
    run(from_mapping(values))


@pytest.mark.max_cases_without_full(SCHEDULES_BY_DEFAULT)
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_guarantees_hold_and_the_workload_recovers(seed: int) -> None:
    check(random_schedule(seed))


@pytest.mark.max_cases_without_full(FURTHER_NAMES_SCHEDULES_BY_DEFAULT)
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
    """Run a schedule. If it breaks a guarantee, fail with a shorter schedule that breaks the same guarantee."""
    error = error_of(schedule)
    if error:
        # The first 8 characters of a message name the guarantee, such as "Never 1:".
        shortest = shrunk(schedule, lambda shorter: error_of(shorter)[:8] == error[:8])
        pytest.fail(f"{error}\nseed {schedule.seed}, for regressions.json:\n{shortest.text()}")


def error_of(schedule: Schedule) -> str:
    """Run a schedule, and return the message about the first guarantee that it breaks; "" if it breaks none."""
    try:
        run(schedule)
    except BrokenError as error:
        return str(error)
    return ""


def test_shrunk_schedule_has_only_the_steps_that_are_necessary_for_the_failure() -> None:
    schedule = random_schedule(1)
    necessary = (schedule.steps[3], schedule.steps[8])
    assert shrunk(schedule, lambda shorter: set(necessary) <= set(shorter.steps)).steps == necessary


def test_schedule_is_the_same_after_writing_and_parsing_it() -> None:
    assert from_mapping(json.loads(random_schedule(1).text())) == random_schedule(1)
