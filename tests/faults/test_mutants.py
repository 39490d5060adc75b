"""The schedules are worth something: each promise that is broken on purpose is noticed."""

from __future__ import annotations

import pytest

from tests.faults.mutants import MUTANTS, Mutant
from tests.tally import count


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what.replace(" ", "-"))
def test_what_is_broken_is_noticed(mutant: Mutant) -> None:
    noticed = mutant.noticed_by(range(mutant.seed, mutant.seed + 1))
    assert noticed
    if mutant.promise.startswith("Never"):
        assert noticed.startswith(f"{mutant.seed} {mutant.promise}: ")
    count("promises broken on purpose, and noticed")


def test_every_never_is_broken() -> None:
    assert {mutant.promise for mutant in MUTANTS} >= {f"Never {number}" for number in range(1, 9)}
