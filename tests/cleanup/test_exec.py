"""cleanup through Headscale's CLI: every case of the HTTP transport except those about an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cleanup import test_run as over_http
from tests.in_cluster import ClusterWorld

NOT_HERE = {
    "test_leftovers_are_removed_and_a_fresh_key_is_written": "creates its own world; see tests/process",
    "test_nodes_are_deleted_one_by_one": "the CLI lists all nodes where HTTP reads one",
    "test_node_whose_id_was_assigned_to_another_machine_stays": "as above",
    "test_unreadable_headscale_changes_nothing": "proxies and API keys; see tests/clients/test_exec.py",
    "test_unreachable_address_is_reported_with_its_setting": "there is no address",
    "test_unwritten_key_that_cannot_be_expired_is_reported": "the response is that of the CLI",
}

CASES = {name: case for name, case in vars(over_http).items() if name.startswith("test_")}

globals().update({name: case for name, case in CASES.items() if name not in NOT_HERE})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    return ClusterWorld(monkeypatch, tmp_path)


def test_excluded_cases_exist() -> None:
    assert NOT_HERE.keys() <= CASES.keys()
