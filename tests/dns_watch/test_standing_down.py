"""Test two pods of one workload that run at the same time: the later pod owns the record, and the earlier stands down.

To stand down means not to change the record. The state of the pod is then "superseded". The later pod is the one whose
node registered later. This node is the successor of the earlier pod's node.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.health.metrics import render_metrics
from tests.builders import NAME
from tests.dns_watch.pods import (
    GONE_WITH_USABLE_KEY,
    REGISTERED,
    SUPERSEDED,
    Pod,
    published_addresses,
    start_two_pods,
)
from tests.simulators.faults import answer, html, omit_items, refuse, stale
from tests.world import Interface, World, events_named

# In this time, dns-watch polls Headscale dozens of times, and reads the record several times.
LONG_S = 1500.0

# By default, the tests run with one release only, because other tests cover the differences between releases.
VERSIONS = ("0.28.0", pytest.param("0.23.0", marks=pytest.mark.full), pytest.param("0.30.0", marks=pytest.mark.full))


@pytest.fixture(params=VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Simulators of Headscale (with a node of a laptop) and Cloudflare, and a simulated clock."""
    world = World(monkeypatch, tmp_path, request.param)
    world.headscale.add_node("laptop", user="svc", registered_by="cli")
    return world


def an_old_pod(world: World, folder: Path, **settings: str) -> Pod:
    """Return a pod that has published its address."""
    pod = Pod(world, folder, settings)
    pod.start()
    pod.run(60)
    assert published_addresses(world) == [pod.address]
    return pod


@pytest.mark.parametrize("self_heal", ["true", "false"])
def test_an_old_pod_that_still_runs_stands_down_for_a_new_pod(
    world: World, tmp_path: Path, events: list[Any], self_heal: str
) -> None:
    """Kubernetes can start a new pod while the old pod still runs on a cluster node that is not reachable.

    The old pod writes nothing, and logs the reason once.
    """
    old = an_old_pod(world, tmp_path / "old", SELF_HEAL=self_heal)
    key = old.key

    new = Pod(world, tmp_path / "new", {"SELF_HEAL": self_heal})
    new.cleanup()
    # The new pod has deleted the old pod's node, but has not registered yet, as while its image is pulled.
    world.run_together(old.watch, seconds=45)
    new.start_tailscale()
    world.run_together(new.watch, old.watch, seconds=10)
    assert published_addresses(world) == [new.address]
    writes = len(world.cloudflare.writes)
    keys = len(world.headscale.keys)
    world.run_together(new.watch, old.watch, seconds=LONG_S)

    assert published_addresses(world) == [new.address]
    assert (len(world.cloudflare.writes), len(world.headscale.keys), old.key) == (writes, keys, key)
    assert [(event["node_id"], event["superseded_by"]) for event in events_named(events, "node.superseded")] == [
        (str(old.node_id), str(new.node_id))
    ]
    assert not events_named(events, "node.reinstated")
    assert (old.nodez, new.nodez) == (SUPERSEDED, REGISTERED)


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "metadata"])
@pytest.mark.parametrize("first", ["earlier", "later"])
@pytest.mark.parametrize("both_create", [False, True], ids=["one record", "both create a record"])
def test_of_two_pods_that_start_together_the_later_node_is_published(
    world: World, tmp_path: Path, events: list[Any], has_interface: bool, first: str, both_create: bool
) -> None:
    earlier, later = start_two_pods(world, tmp_path, has_interface=has_interface)
    assert later.node_id > earlier.node_id
    if both_create:
        # The second pod reads the zone as it was before the first pod created its record.
        world.cloudflare.faults.add(stale(), method="GET", path="dns_records", after=1)
    order = [earlier.watch, later.watch] if first == "earlier" else [later.watch, earlier.watch]
    world.run_together(*order, seconds=2)
    assert len(published_addresses(world)) == (2 if both_create else 1)
    # A new record is read again after POLL_INTERVAL.
    world.run_together(*order, seconds=45)
    assert published_addresses(world) == [later.address]

    world.run_together(*order, seconds=600)
    writes = len(world.cloudflare.writes)
    world.run_together(*order, seconds=LONG_S)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([later.address], writes)
    assert (earlier.nodez, later.nodez) == (SUPERSEDED, REGISTERED)
    assert len(events_named(events, "node.superseded")) == 1


def superseded_and_later_pod(world: World, tmp_path: Path) -> tuple[Pod, Pod]:
    """Return two pods. The address of the later pod is published, and the earlier pod stands down."""
    earlier, later = start_two_pods(world, tmp_path)
    world.run_together(earlier.watch, later.watch, seconds=900)
    assert (published_addresses(world), earlier.nodez.state) == ([later.address], "superseded")
    return earlier, later


def test_restarted_dns_watch_of_the_earlier_pod_changes_no_record(world: World, tmp_path: Path) -> None:
    earlier, later = superseded_and_later_pod(world, tmp_path)
    writes = len(world.cloudflare.writes)
    earlier.new_watch()
    world.run_together(earlier.watch, later.watch, seconds=LONG_S)
    assert (earlier.nodez, len(world.cloudflare.writes)) == (SUPERSEDED, writes)


@pytest.mark.parametrize("change", ["delete_node", "expire_node", "disconnect"])
def test_the_earlier_pod_takes_over_again_when_the_later_node_is_unusable(
    world: World, tmp_path: Path, events: list[Any], change: str
) -> None:
    earlier, later = superseded_and_later_pod(world, tmp_path)
    getattr(world.headscale, change)(later.node_id)
    earlier.run(500)
    assert (earlier.nodez, published_addresses(world)) == (REGISTERED, [earlier.address])
    assert [event["node_id"] for event in events_named(events, "node.reinstated")] == [str(earlier.node_id)]


def test_a_later_pod_whose_node_is_offline_leaves_the_record_to_the_earlier_pod(
    world: World, tmp_path: Path, events: list[Any]
) -> None:
    """The later pod still reaches Headscale and Cloudflare. Both pods would overwrite each other's record forever."""
    earlier, later = superseded_and_later_pod(world, tmp_path)
    world.headscale.disconnect(later.node_id)
    world.run_together(earlier.watch, later.watch, seconds=900)
    writes = len(world.cloudflare.writes)
    world.run_together(earlier.watch, later.watch, seconds=LONG_S)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([earlier.address], writes)
    assert (earlier.nodez, later.nodez) == (REGISTERED, SUPERSEDED)
    assert later.watch.status.reason == f"node {earlier.node_id} of an online earlier pod owns the name"

    world.headscale.connect(later.node_id)
    world.run_together(earlier.watch, later.watch, seconds=900)
    assert (published_addresses(world), later.nodez) == ([later.address], REGISTERED)
    assert [event["node_id"] for event in events_named(events, "node.superseded")] == [
        str(pod.node_id) for pod in (earlier, later, earlier)
    ]


def test_a_restart_of_headscale_changes_no_record(world: World, tmp_path: Path, events: list[Any]) -> None:
    """All nodes are offline until they reconnect."""
    earlier, later = superseded_and_later_pod(world, tmp_path)
    writes = len(world.cloudflare.writes)
    world.headscale.restart()
    world.run_together(earlier.watch, later.watch, seconds=LONG_S)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([later.address], writes)
    for pod in (earlier, later):
        world.headscale.connect(pod.node_id)
    world.run_together(earlier.watch, later.watch, seconds=LONG_S)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([later.address], writes)
    assert not events_named(events, "node.reinstated")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(answer(200, json.dumps({"nodes": []})), id="empty list"),
        pytest.param(html(404), id="404 of a proxy"),
        pytest.param(html(503), id="503 of a proxy"),
        pytest.param(refuse(), id="connection refused"),
        pytest.param(answer(200, json.dumps({"users": []})), id="no users"),
    ],
)
def test_standing_down_continues_while_headscale_fails(
    world: World, tmp_path: Path, events: list[Any], fault: Any
) -> None:
    """The successor is reported once, and the record stays."""
    old = an_old_pod(world, tmp_path / "old", SELF_HEAL="true")
    new = Pod(world, tmp_path / "new")
    new.start()
    world.run_together(new.watch, old.watch, seconds=120)
    path = r"/api/v1/user$" if b"users" in fault.body else r"/api/v1/node(\?|$)"
    world.headscale.faults.add(fault, method="GET", path=path, times=None)
    old.run(600)
    assert old.nodez == SUPERSEDED
    world.headscale.faults.clear()
    old.run(600)
    assert old.nodez == SUPERSEDED
    assert len(events_named(events, "node.superseded")) == 1
    assert not events_named(events, "node.reinstated")
    assert published_addresses(world) == [new.address]


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_an_old_pod_stands_down_for_a_new_pod_that_got_its_address(
    world: World, tmp_path: Path, restarts: bool
) -> None:
    """Headscale assigns the address of a deleted node again. The old pod's interface still has this address.

    The pods have different settings, so they would overwrite each other's record.
    """
    old = an_old_pod(world, tmp_path / "old", SELF_HEAL="true", DNS_TTL="60")
    new = Pod(world, tmp_path / "new", {"DNS_TTL": "300"})
    new.cleanup()
    # After a restart, Headscale assigns the lowest free address.
    world.headscale.restart()
    new.start_tailscale()
    assert new.address == old.address
    if restarts:
        old.new_watch()
    world.run_together(new.watch, old.watch, seconds=900)
    assert (old.nodez, new.nodez) == (SUPERSEDED, REGISTERED)
    writes = len(world.cloudflare.writes)
    world.run_together(new.watch, old.watch, seconds=LONG_S)
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([new.address], writes)


def pods_with_a_late_successor(world: World, folder: Path) -> tuple[Pod, Pod]:
    """Return an old pod that has created a new pre-auth key, and a new pod whose node registered only after that."""
    old = an_old_pod(world, folder / "old", SELF_HEAL="true")
    new = Pod(world, folder / "new")
    new.cleanup()
    old.run(120)
    assert old.nodez == GONE_WITH_USABLE_KEY
    new.start_tailscale()
    old.run(60)
    return old, new


def test_a_successor_that_registers_late_ends_self_healing(world: World, tmp_path: Path) -> None:
    """Without the new pod, the old pod would register again with its new key."""
    old, new = pods_with_a_late_successor(world, tmp_path)
    assert old.nodez == SUPERSEDED
    world.run_together(new.watch, old.watch, seconds=LONG_S)
    assert old.nodez == SUPERSEDED
    assert published_addresses(world) == [new.address]


@pytest.mark.parametrize("incomplete_lists", [1, 2])
def test_an_incomplete_list_does_not_create_a_key_for_a_superseded_pod(
    world: World, tmp_path: Path, incomplete_lists: int
) -> None:
    """Several lists must lack the successor before dns-watch concludes that the successor was deleted."""
    old = an_old_pod(world, tmp_path / "old", SELF_HEAL="true")
    new = Pod(world, tmp_path / "new")
    new.start()
    world.run_together(new.watch, old.watch, seconds=600)
    key = old.key
    world.headscale.faults.add(omit_items(NAME), method="GET", path=r"/api/v1/node(\?|$)", times=incomplete_lists)
    for _ in range(incomplete_lists):
        world.clock.sleep(600)
        old.watch.run_pass()
        assert (old.nodez.restart_helps, old.key) == (False, key)
    assert world.headscale.faults.pending == 0
    world.run_together(new.watch, old.watch, seconds=LONG_S)
    assert (old.nodez, old.key) == (SUPERSEDED, key)
    assert published_addresses(world) == [new.address]


def test_an_incomplete_list_does_not_restart_a_superseded_pod(world: World, tmp_path: Path) -> None:
    """The superseded pod requests no restart, even if its key file already contains a new key."""
    old, new = pods_with_a_late_successor(world, tmp_path)
    world.headscale.faults.add(omit_items(NAME), method="GET", path=r"/api/v1/node(\?|$)")
    world.clock.sleep(60)
    old.watch.run_pass()
    assert world.headscale.faults.pending == 0
    assert old.nodez == SUPERSEDED
    # After the successor was deleted, a restart helps.
    new.client.stop()
    world.headscale.delete_node(new.node_id)
    old.run(120)
    assert old.nodez == GONE_WITH_USABLE_KEY


def test_dns_watch_that_restarts_after_the_later_pod_registered_stands_down(world: World, tmp_path: Path) -> None:
    """After the restart, dns-watch reads the id of its node from the key metadata, and finds the later node."""
    old = an_old_pod(world, tmp_path / "old", SELF_HEAL="true", MAX_RETRIES="0")
    key = old.key
    new = Pod(world, tmp_path / "new")
    new.start()
    old.new_watch()
    world.run_together(new.watch, old.watch, seconds=LONG_S)
    assert (old.nodez, old.key) == (SUPERSEDED, key)
    assert published_addresses(world) == [new.address]


def test_an_expired_superseded_node_does_not_register_again(world: World, tmp_path: Path) -> None:
    earlier, later = superseded_and_later_pod(world, tmp_path)
    key = earlier.key
    earlier.new_watch(SELF_HEAL="true")
    earlier.run(30)
    world.headscale.expire_node(earlier.node_id)
    world.run_together(earlier.watch, later.watch, seconds=LONG_S)
    assert (earlier.nodez, earlier.key) == (SUPERSEDED, key)
    assert published_addresses(world) == [later.address]


def test_the_health_port_names_the_successor(world: World, tmp_path: Path) -> None:
    """`/nodez` contains the id of the successor's node. A metric reports that there is a successor."""
    earlier, later = superseded_and_later_pod(world, tmp_path)
    assert earlier.watch.status.node() == {
        "state": "superseded",
        "node_id": str(earlier.node_id),
        "superseded_by": str(later.node_id),
        "restart_helps": False,
    }
    _, metrics = render_metrics(earlier.watch.status, accept="")
    assert b"\ntailscale_lifecycle_node_superseded 1.0\n" in metrics
    assert not earlier.watch.status.ready
    assert earlier.watch.status.readiness()["reason"] == f"node {later.node_id} of a later pod owns the name"


@pytest.mark.parametrize("settings", [{}, {"TAILSCALE_INTERFACE": ""}], ids=["interface disappeared", "no interface"])
@pytest.mark.parametrize("own_node", ["deleted", "expired"])
def test_a_pod_that_cannot_identify_its_node_does_not_publish_the_later_node(
    world: World, tmp_path: Path, settings: dict[str, str], own_node: str
) -> None:
    """Neither an interface nor key metadata shows which node is the old pod's. Its DNS_TTL differs from the new pod's.

    If the old pod published the later node, the pods would repeatedly change the TTL of the record.
    """
    node = world.headscale.add_node(NAME, user="svc")
    interface = Interface(None) if settings else Interface(*node.addresses)
    no_metadata = {"AUTHKEY_OUTPUT_PATH": str(tmp_path / "none" / "authkey")}
    old_watch = world.watch(interface, **settings, **no_metadata, DNS_TTL="60")
    world.run(old_watch, 100)
    interface.set_addresses(None)
    world.run(old_watch, 100)
    assert published_addresses(world) == [node.addresses[0]]

    if own_node == "deleted":
        world.headscale.delete_node(node.id)
    else:
        world.headscale.expire_node(node.id)
    later = world.headscale.add_node(NAME, user="svc")
    new_watch = world.watch(Interface(*later.addresses), DNS_TTL="300")
    world.run_together(new_watch, old_watch, seconds=60)
    writes = len(world.cloudflare.writes)
    world.run_together(old_watch, new_watch, seconds=LONG_S)
    assert published_addresses(world) == [later.addresses[0]]
    assert len(world.cloudflare.writes) == writes
    assert not old_watch.state.is_registered


@pytest.mark.parametrize("world", ["0.27.1"], indirect=True)
def test_a_node_that_was_moved_to_another_user_is_not_published(world: World) -> None:
    """Headscale 0.27 and older can move nodes. The id and the address of the node stay the same."""
    node = world.headscale.add_node(NAME, user="svc")
    watch = world.watch(Interface(*node.addresses))
    world.run(watch, 100)
    assert published_addresses(world) == [node.addresses[0]]
    world.headscale.add_user("ann")
    world.headscale.move_node(node.id, "ann")
    (record,) = world.cloudflare.records(world.zone_id, NAME)
    world.cloudflare.remove_record(record.id)
    world.run(watch, LONG_S)
    assert published_addresses(world) == []
    assert not watch.state.is_registered
