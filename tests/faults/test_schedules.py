"""Whatever fails, in any order: the guarantees hold, and in the end the world is in sync.

A schedule that fails is shrunk by omitting steps, and printed. once_failed.json keeps it under a name.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

from tests.faults.engine import run, shrunk
from tests.faults.invariants import BrokenError
from tests.faults.schedule import Schedule, drawn, parsed, with_further_names

SCHEDULES = 504
DEFAULT = 20

FURTHER_SCHEDULES = 100
FURTHER_DEFAULT = 6

SOAK = 10_000

# A soak is shared among several processes.
SHARES = 8

ONCE_FAILED: dict[str, Any] = json.loads(Path(__file__).with_name("once_failed.json").read_text())

# A process that is killed closes no file.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.mark.parametrize("values", ONCE_FAILED.values(), ids=ONCE_FAILED)
def test_schedule_that_once_failed_passes(values: dict[str, Any]) -> None:
    run(parsed(values))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.full if seed >= DEFAULT else ()) for seed in range(SCHEDULES)]
)
def test_guarantees_hold_and_the_world_recovers(seed: int) -> None:
    check(drawn(seed))


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.full if seed >= FURTHER_DEFAULT else ())
        for seed in range(FURTHER_SCHEDULES)
    ],
)
def test_guarantees_hold_with_further_names(seed: int) -> None:
    check(with_further_names(drawn(seed)))


@pytest.mark.full
@pytest.mark.parametrize("share", range(SHARES))
def test_guarantees_hold_for_new_seeds(share: int, pytestconfig: pytest.Config) -> None:
    for _ in range(SOAK // SHARES if pytestconfig.getoption("--soak") else 1):
        schedule = drawn(SystemRandom().getrandbits(32))
        check(schedule)
        check(with_further_names(schedule))


def check(schedule: Schedule) -> None:
    """Run a schedule. If it fails, print the shortest that fails alike."""
    try:
        run(schedule)
    except BrokenError as error:
        kind = str(error)[:8]
        shortest = shrunk(schedule, lambda shorter: broken_invariant(shorter) == kind)
        pytest.fail(f"{error}\nseed {schedule.seed}, for once_failed.json:\n{shortest.text()}")


def broken_invariant(schedule: Schedule) -> str:
    """Return which invariant a schedule breaks; "" for none."""
    try:
        run(schedule)
    except BrokenError as error:
        return str(error)[:8]
    return ""


def test_schedule_is_shrunk_to_the_steps_that_fail() -> None:
    schedule = drawn(1)
    needed = (schedule.steps[3], schedule.steps[8])
    assert shrunk(schedule, lambda shorter: set(needed) <= set(shorter.steps)).steps == needed


def test_schedule_is_read_as_it_was_written() -> None:
    assert parsed(json.loads(drawn(1).text())) == drawn(1)
