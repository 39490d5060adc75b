"""`cleanup` through Headscale's command line: every case of the HTTP transport, but for those about an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cleanup import test_run as over_http
from tests.in_cluster import ClusterWorld, cluster_world

NOT_HERE = {
    "test_what_an_earlier_pod_left_goes_and_a_fresh_key_comes": "makes a world of its own; see tests/process",
    "test_several_old_nodes_go_one_after_another": "a list stands where HTTP reads one node",
    "test_a_node_that_became_another_between_look_and_deletion_stays": "the same",
    "test_a_headscale_that_cannot_be_read_changes_nothing": "proxies and API keys; see tests/clients/test_exec.py",
    "test_nobody_at_the_address_is_told_with_what_to_do": "there is no address",
    "test_a_key_that_can_neither_be_written_nor_expired_is_told": "the answer comes from the command line",
}

CASES = {name: case for name, case in vars(over_http).items() if name.startswith("test_")}

globals().update({name: case for name, case in CASES.items() if name not in NOT_HERE})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClusterWorld]:
    with cluster_world(monkeypatch, tmp_path) as world:
        yield world


def test_nothing_is_left_out_that_is_not_there() -> None:
    assert NOT_HERE.keys() <= CASES.keys()
