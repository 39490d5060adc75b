"""Test that many pods can start at the same time without overloading Headscale.

Headscale checks the API key of a request even if the client does not wait for the response any more. Such a check is
wasted, because the client sends its request again.
"""

from __future__ import annotations

import pytest

from tests.fleet.storm import storm
from tests.tally import add_measurement


@pytest.mark.parametrize(
    ("pods", "key_check_s"),
    [
        # 50 pods with key checks of 360 ms cause the same load as 300 pods with real ones, which take 60 ms.
        (50, 0.36),
        # The same load as 1,000 pods.
        pytest.param(50, 1.2, marks=pytest.mark.full),
    ],
)
def test_last_key_takes_at_most_150_percent_of_the_cpu_time(pods: int, key_check_s: float) -> None:
    result = storm(pods, key_check_s=key_check_s)
    add_measurement(f"fleet: {result}")
    assert result.exits == 0
    assert result.wasted < 0.1 * result.key_checks
    assert result.last_key_s <= 1.5 * result.min_cpu_s
