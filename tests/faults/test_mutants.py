"""Test that the other tests detect every mutant. A mutant is a change to the program that breaks one guarantee.

A schedule is a random sequence of faults. A storm is the start of many pods at the same time.
"""

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
from tests.tally import add_to_count


@pytest.fixture(scope="module")
def runner() -> Iterator[MutantRunner]:
    with MutantRunner() as runner:
        yield runner


def id_of(mutant: Mutant) -> str:
    return mutant.name.replace(" ", "-")


@pytest.mark.parametrize("mutant", SCHEDULE_MUTANTS, ids=id_of)
def test_schedules_detect_the_mutant(runner: MutantRunner, mutant: Mutant) -> None:
    assert mutant.seed is not None
    detected = runner.run_schedules(mutant, range(mutant.seed, mutant.seed + 1))
    assert detected
    # The message starts with the guarantee only if the guarantee has a number.
    if mutant.guarantee.startswith("Never"):
        assert detected.startswith(f"{mutant.seed} {mutant.guarantee}: ")
    add_to_count("mutants detected")


@pytest.mark.parametrize(
    ("mutant", "tests"),
    [
        *(pytest.param(mutant, DECISION_TESTS, id=id_of(mutant)) for mutant in DECISION_MUTANTS),
        *(pytest.param(mutant, STORM_TEST, id=id_of(mutant), marks=pytest.mark.full) for mutant in STORM_MUTANTS),
    ],
)
def test_other_tests_detect_the_mutant(runner: MutantRunner, mutant: Mutant, tests: str) -> None:
    output_of_failed_test = runner.run_tests(mutant, tests)
    assert output_of_failed_test
    add_to_count("mutants detected")


def test_every_numbered_guarantee_has_a_mutant() -> None:
    assert {mutant.guarantee for mutant in MUTANTS} >= {f"Never {number}" for number in range(1, 9)}
