"""The scenarios of test_run.py with Headscale's command line, run by `exec` in its pod, instead of its HTTP API."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cleanup import test_run as over_http
from tests.in_cluster import ClusterWorld

# The scenarios that only exist over HTTP, each with the reason.
EXCLUDED = {
    "test_leftovers_are_removed_and_a_fresh_key_is_written": "it creates its own world; see tests/process",
    "test_nodes_are_deleted_one_by_one": "the CLI lists all nodes where HTTP reads one",
    "test_node_whose_id_was_assigned_to_another_machine_stays": "the CLI lists all nodes where HTTP reads one",
    "test_unreadable_headscale_changes_nothing": "it is about proxies and API keys; see tests/clients/test_exec.py",
    "test_unreachable_address_is_reported_with_its_setting": "the CLI has no address",
    "test_unwritten_key_that_cannot_be_expired_is_reported": "the response is that of the CLI",
}

SCENARIOS = {name: test for name, test in vars(over_http).items() if name.startswith("test_")}

globals().update({name: test for name, test in SCENARIOS.items() if name not in EXCLUDED})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    return ClusterWorld(monkeypatch, tmp_path)


def test_excluded_scenarios_exist() -> None:
    assert EXCLUDED.keys() <= SCENARIOS.keys()
