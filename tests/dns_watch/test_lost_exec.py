"""Test dns-watch with HEADSCALE_ACCESS=exec when two pods have the same hostname, and when a node is lost.

A node is lost if it was deleted or has expired. With the HTTP API, two responses show that a node was deleted: the
response about this node, and the list of all nodes. With exec, the list is the only evidence, and dns-watch polls less
often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.dns_watch import test_heal, test_standing_down
from tests.dns_watch.pods import GONE_WITH_USABLE_KEY, REGISTERED, Nodez, published_addresses, start_two_pods
from tests.dns_watch.test_heal import (
    INCOMPLETE_LIST,
    NODE,
    NODES,
    NOT_FOUND,
    a_pod,
    delete_node,
    key_count,
    make_headscale_fail,
)
from tests.in_cluster import ClusterWorld
from tests.simulators.faults import stale
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault
from tests.world import event_names

# These tests of test_standing_down.py also run with exec. The other ones depend on the poll interval of the HTTP API.
SCENARIOS = (
    "test_an_old_pod_that_still_runs_stands_down_for_a_new_pod",
    "test_restarted_dns_watch_of_the_earlier_pod_changes_no_record",
    "test_the_earlier_pod_takes_over_again_when_the_later_node_is_unusable",
    "test_a_restart_of_headscale_changes_no_record",
    "test_standing_down_continues_while_headscale_fails",
    "test_an_incomplete_list_does_not_create_a_key_for_a_superseded_pod",
    "test_an_expired_superseded_node_does_not_register_again",
    "test_the_health_port_names_the_successor",
    "test_a_pod_that_cannot_identify_its_node_does_not_publish_the_later_node",
    "test_a_node_that_was_moved_to_another_user_is_not_published",
)

globals().update({name: getattr(test_standing_down, name) for name in SCENARIOS})


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    """Simulators and a simulated clock. Headscale has a node of a laptop, so that its list of nodes is never empty."""
    world = ClusterWorld(monkeypatch, tmp_path, getattr(request, "param", "0.28.0"))
    world.headscale.add_node("laptop", user="svc", registered_by="cli")
    return world


@pytest.mark.parametrize("world", test_heal.VERSIONS, indirect=True)
@pytest.mark.parametrize("loss", ["gone", "expired"])
def test_a_lost_node_registers_again_with_exec(world: ClusterWorld, tmp_path: Path, loss: str) -> None:
    pod = a_pod(world, tmp_path / "pod")
    old_key = pod.key
    if loss == "gone":
        delete_node(pod)
    else:
        world.headscale.expire_node(pod.node_id)
    pod.run_until(Nodez(loss, restart_helps=True), within_s=600)
    assert pod.key != old_key
    pod.start_tailscale()
    pod.run_until(REGISTERED, within_s=180)
    pod.run(600)
    assert published_addresses(world) == [pod.address]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ExecFault(sent_bytes=3), id="connection lost"),
        pytest.param(ExecFault(before=b"garbage\n"), id="garbage before the response"),
        pytest.param(ExecFault(instead=Finished(1)), id="exit status 1"),
        pytest.param(ExecFault(instead=Finished(stdout=b"null")), id="null"),
        pytest.param(ExecFault(instead=Finished(stdout=b"[]")), id="empty list"),
        pytest.param(ExecFault(instead=Finished()), id="no output"),
        pytest.param(ExecFault(instead=Finished(stdout=b"<html>")), id="HTML page"),
    ],
)
@pytest.mark.parametrize("command", ["", "nodes list"], ids=["every command", "list of nodes"])
def test_an_inconclusive_list_changes_nothing(
    world: ClusterWorld, tmp_path: Path, events: list[Any], fault: ExecFault, command: str
) -> None:
    pod = a_pod(world, tmp_path / "pod")
    key, writes = pod.key, len(world.cloudflare.writes)
    world.kubernetes.add_exec_fault(fault, command, times=None)
    pod.run(1800)
    assert pod.nodez.restart_helps is False
    assert (pod.key, len(world.cloudflare.writes)) == (key, writes)
    assert "node.lost" not in event_names(events)


def test_incomplete_lists_create_one_key(world: ClusterWorld, tmp_path: Path) -> None:
    """The pod's node exists, but the list does not contain it. With exec, the list is the only evidence."""
    pod = a_pod(world, tmp_path / "pod")
    keys, writes = key_count(world), len(world.cloudflare.writes)
    make_headscale_fail(world, {NODE: NOT_FOUND, NODES: INCOMPLETE_LIST})
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=600)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([pod.address], writes)
    world.headscale.faults.clear()
    pod.run(600)
    assert pod.nodez == REGISTERED
    assert key_count(world) == keys + 1
    assert len(world.headscale.nodes) == 2


def test_the_later_pod_owns_the_name_if_both_pods_create_a_record(world: ClusterWorld, tmp_path: Path) -> None:
    earlier, later = start_two_pods(world, tmp_path)
    # The second pod reads the zone as it was before the first pod created its record.
    world.cloudflare.faults.add(stale(), method="GET", path="dns_records", after=1)
    world.run_together(earlier.watch, later.watch, seconds=2)
    assert len(published_addresses(world)) == 2
    world.run_together(earlier.watch, later.watch, seconds=150)
    assert published_addresses(world) == [later.address]
    world.run_together(earlier.watch, later.watch, seconds=1800)
    assert (earlier.nodez.state, later.nodez.state) == ("superseded", "registered")
