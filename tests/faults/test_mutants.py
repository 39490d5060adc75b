"""The tests detect each guarantee that is broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.mutants import DECISIONS, MUTANTS, SCHEDULES, Laboratory, Mutant
from tests.tally import count


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as laboratory:
        yield laboratory


@pytest.mark.parametrize("mutant", SCHEDULES, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_schedules_detect_the_mutant(laboratory: Laboratory, mutant: Mutant) -> None:
    assert mutant.seed is not None
    detected = laboratory.schedules(mutant, range(mutant.seed, mutant.seed + 1))
    assert detected
    if mutant.guarantee.startswith("Never"):
        assert detected.startswith(f"{mutant.seed} {mutant.guarantee}: ")
    count("guarantees broken on purpose, and detected")


@pytest.mark.parametrize("mutant", DECISIONS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_tables_detect_the_mutant(laboratory: Laboratory, mutant: Mutant) -> None:
    assert laboratory.tables(mutant)
    count("guarantees broken on purpose, and detected")


def test_every_never_has_a_mutant() -> None:
    assert {mutant.guarantee for mutant in MUTANTS} >= {f"Never {number}" for number in range(1, 9)}
