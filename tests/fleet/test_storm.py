"""Pods that start at the same time do not overload Headscale with requests whose responses they do not wait for."""

from __future__ import annotations

import pytest

from tests.fleet.storm import storm
from tests.tally import add_measurement


@pytest.mark.parametrize(
    ("pods", "key_check_s"),
    [
        # The same load as 300 and as 1,000 pods with a key check of 60 ms, which scripts/bench runs.
        (50, 0.36),
        pytest.param(50, 1.2, marks=pytest.mark.full),
    ],
)
def test_storm_takes_at_most_half_longer_than_the_pods_one_after_another(pods: int, key_check_s: float) -> None:
    result = storm(pods, key_check_s=key_check_s)
    add_measurement(f"fleet: {result}")
    assert result.exits == 0
    assert result.wasted < 0.1 * result.key_checks
    assert result.last_key_s <= 1.5 * result.limit_s
