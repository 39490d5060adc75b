"""Test that the other tests detect every mutant. A mutant is a change to the program that breaks one guarantee."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.mutants import (
    DECISION_MUTANTS,
    DECISION_TESTS,
    MUTANTS,
    SCHEDULE_MUTANTS,
    STORM_MUTANTS,
    STORM_TEST,
    Mutant,
    MutantRunner,
)
from tests.tally import count


@pytest.fixture(scope="module")
def runner() -> Iterator[MutantRunner]:
    with MutantRunner() as runner:
        yield runner


@pytest.mark.parametrize("mutant", SCHEDULE_MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_schedules_detect_the_mutant(runner: MutantRunner, mutant: Mutant) -> None:
    assert mutant.seed is not None
    detected = runner.run_schedules(mutant, range(mutant.seed, mutant.seed + 1))
    assert detected
    if mutant.guarantee.startswith("Never"):
        assert detected.startswith(f"{mutant.seed} {mutant.guarantee}: ")
    count("mutants detected")


@pytest.mark.parametrize("mutant", DECISION_MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_decision_tests_detect_the_mutant(runner: MutantRunner, mutant: Mutant) -> None:
    assert runner.run_tests(mutant, DECISION_TESTS)
    count("mutants detected")


@pytest.mark.full
@pytest.mark.parametrize("mutant", STORM_MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_storm_detects_the_mutant(runner: MutantRunner, mutant: Mutant) -> None:
    assert runner.run_tests(mutant, STORM_TEST)
    count("mutants detected")


def test_every_numbered_guarantee_has_a_mutant() -> None:
    assert {mutant.guarantee for mutant in MUTANTS} >= {f"Never {number}" for number in range(1, 9)}
