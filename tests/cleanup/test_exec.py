"""Run the tests of test_run.py again, with a client that runs the `headscale` command in Headscale's pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cleanup import test_run as rest_api_tests
from tests.in_cluster import ClusterWorld

# The tests that need the REST API of Headscale, each with the reason.
EXCLUDED = {
    "test_nodes_are_deleted_one_by_one": "the command cannot read a single node",
    "test_node_whose_id_was_assigned_to_another_machine_stays": "the command cannot read a single node",
    "test_key_that_can_be_neither_written_nor_expired_is_reported": "it contains a response of the REST API",
}

TESTS = {name: test for name, test in vars(rest_api_tests).items() if name.startswith("test_")}

globals().update({name: test for name, test in TESTS.items() if name not in EXCLUDED})


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    """Simulators, with Headscale in a pod. This fixture replaces the fixture of conftest.py."""
    return ClusterWorld(monkeypatch, tmp_path, getattr(request, "param", "0.28.0"))


def test_excluded_tests_exist() -> None:
    assert EXCLUDED.keys() <= TESTS.keys()
