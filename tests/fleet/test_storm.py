"""Pods that start at once do not overload Headscale until it does nothing but check keys of requests given up."""

from __future__ import annotations

import pytest

from tests.fleet.storm import storm
from tests.tally import add_measurement

full = pytest.mark.full


@pytest.mark.parametrize(
    ("pods", "key_check_s"),
    [
        # As 300 pods at 60 ms, and as 1,000, which scripts/bench runs.
        (50, 0.36),
        pytest.param(50, 1.2, marks=full),
    ],
)
def test_storm_takes_little_longer_than_the_pods_one_by_one(pods: int, key_check_s: float) -> None:
    seen = storm(pods, key_check_s=key_check_s)
    add_measurement(f"fleet: {seen}")
    assert seen.exits == 0
    assert seen.wasted < 0.1 * seen.key_checks
    assert seen.last_key_s <= 1.5 * seen.limit_s
