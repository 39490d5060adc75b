"""Test that with SELF_HEAL, a lost node registers again with one new pre-auth key, and that nothing else is changed.

A node is lost if it was deleted or has expired. A key is usable if a node can register with it. The tests run
`dns-watch` with simulators of Headscale and Cloudflare, and with a simulated clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.health.metrics import render_metrics
from tests.builders import NAME
from tests.dns_watch.pods import (
    EXPIRED_WITH_USABLE_KEY,
    GONE,
    GONE_WITH_USABLE_KEY,
    REGISTERED,
    WAITING,
    Nodez,
    Pod,
    published_addresses,
)
from tests.simulators.faults import Fault, answer, drop, html, malformed_json, omit_items, refuse
from tests.simulators.vpn_client import STATE_FILE
from tests.world import World, event_names, events_named

VERSIONS = ("0.23.0", "0.25.1", "0.27.1", "0.28.0", "0.29.2", "0.30.0")

HOUR_S = 3600.0
# In this time, dns-watch would confirm a loss several times.
LONG_S = 1500.0

# With the default intervals, several hours would need thousands of polls.
SLOW = "2m"

# Paths of requests.
NODE = r"/api/v1/node/\d+$"
NODES = r"/api/v1/node$"
USERS = r"/api/v1/user$"
KEYS = r"/api/v1/preauthkey(\?|$)"


def a_world(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.28.0") -> World:
    """Return the simulators and a clock. Headscale has a node of a laptop, so that its list of nodes is never empty."""
    world = World(monkeypatch, folder, version)
    world.headscale.add_node("laptop", user="svc", registered_by="cli")
    return world


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Simulators of Headscale (with a node of a laptop) and Cloudflare, and a simulated clock."""
    return a_world(monkeypatch, tmp_path)


@pytest.fixture(params=VERSIONS)
def any_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """The same as `world`, for each Headscale release in VERSIONS."""
    return a_world(monkeypatch, tmp_path, request.param)


def a_pod(world: World, folder: Path, *, has_interface: bool = True, **settings: str) -> Pod:
    """Return a pod with SELF_HEAL that has published its address."""
    pod = Pod(world, folder, {"SELF_HEAL": "true"} | settings, has_interface=has_interface)
    pod.start()
    pod.run(30)
    assert published_addresses(world) == [pod.address]
    return pod


def delete_node(pod: Pod) -> None:
    pod.world.headscale.delete_node(pod.node_id)


def key_count(world: World) -> int:
    return len(world.headscale.keys)


# --- Lost nodes that register again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
def test_a_deleted_node_registers_again(
    any_world: World, tmp_path: Path, events: list[Any], has_interface: bool
) -> None:
    """The tailscale client does not detect the deletion, so dns-watch requests a restart of the client."""
    world = any_world
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface)
    old_id, old_address, old_key, writes = pod.node_id, pod.address, pod.key, len(world.cloudflare.writes)
    delete_node(pod)

    pod.run(55)
    assert (pod.nodez, pod.key, key_count(world)) == (WAITING, old_key, 1)
    pod.run(60)
    assert pod.nodez == GONE_WITH_USABLE_KEY
    assert pod.restart_marker.exists()
    assert pod.key != old_key
    assert world.usable_keys().count(pod.key) == 1
    (lost,) = events_named(events, "node.lost")
    assert (lost["node_id"], lost["log_level"]) == (str(old_id), "error")
    # The record stays as it is, and no request is sent to Cloudflare.
    assert (published_addresses(world), len(world.cloudflare.writes)) == ([old_address], writes)

    pod.start_tailscale()
    pod.run(60)
    assert pod.node_id != old_id
    assert (pod.nodez, published_addresses(world)) == (REGISTERED, [pod.address])
    assert not pod.restart_marker.exists()
    assert [event["after"] for event in events_named(events, "node.returned")] == ["gone"]
    assert key_count(world) == 2


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted dns-watch"])
def test_the_only_node_of_a_tailnet_registers_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    events: list[Any],
    version: str,
    has_interface: bool,
    restarted: bool,
) -> None:
    """The list of nodes is empty, so dns-watch treats the node as lost after five minutes instead of one."""
    world = World(monkeypatch, tmp_path, version)
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface)
    old_id, old_key = pod.node_id, pod.key
    delete_node(pod)
    assert world.headscale.nodes == []
    if restarted:
        pod.new_watch()

    pod.run(299)
    assert (pod.nodez, pod.key, key_count(world)) == (WAITING, old_key, 1)
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=150)
    assert [event["node_id"] for event in events_named(events, "node.lost")] == [str(old_id)]
    assert world.usable_keys() == [pod.key]

    pod.start_tailscale()
    pod.run(60)
    assert pod.nodez == REGISTERED
    assert (published_addresses(world), key_count(world)) == ([pod.address], 2)


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
def test_a_node_whose_id_belongs_to_another_machine_registers_again(
    world: World, tmp_path: Path, events: list[Any], has_interface: bool
) -> None:
    """Headscale's database was restored from a backup, and another machine registered and got the id."""
    backup = world.headscale.backup()
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface)
    old_id, old_key = pod.node_id, pod.key
    world.headscale.restore(backup)
    other = world.headscale.add_node("printer", user="svc", registered_by="cli")
    assert other.id == old_id

    pod.run(130)
    assert pod.nodez == GONE_WITH_USABLE_KEY
    assert [event["node_id"] for event in events_named(events, "node.lost")] == [str(old_id)]
    assert pod.key != old_key
    pod.start_tailscale()
    pod.run(60)
    assert pod.nodez == REGISTERED
    assert published_addresses(world) == [pod.address] != [other.address]
    assert [node.name for node in world.headscale.nodes] == ["laptop", "printer", NAME]


@pytest.mark.parametrize("has_earlier_key", [False, True], ids=["", "earlier key in the file"])
def test_a_key_whose_id_belongs_to_another_key_is_replaced(
    any_world: World, tmp_path: Path, has_earlier_key: bool
) -> None:
    """Headscale's database was restored from a backup, and another pod's key got the id of this pod's key.

    The other pod's key must stay usable. The key file contains an earlier key if a process was killed after it wrote
    the metadata.
    """
    world = any_world
    backup = world.headscale.backup()
    pod = a_pod(world, tmp_path / "pod")
    if has_earlier_key:
        pod.key_file.write_text("an earlier key")
    old_key, old_key_id = pod.key, world.headscale.keys[0].id
    world.headscale.restore(backup)
    other = world.headscale.create_key("svc")
    assert other.id == old_key_id

    pod.run_until(GONE_WITH_USABLE_KEY, within_s=200)
    assert pod.key != old_key
    assert sorted(world.usable_keys()) == sorted([pod.key, other.key])


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
def test_an_expired_node_keeps_its_id_when_it_registers_again(
    any_world: World, tmp_path: Path, events: list[Any], has_interface: bool
) -> None:
    """The node logs in again with a new key, and keeps its address and record."""
    world = any_world
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface)
    old_id, old_address, old_key, writes = pod.node_id, pod.address, pod.key, len(world.cloudflare.writes)
    world.headscale.expire_node(pod.node_id)
    if has_interface:
        # While a client has to log in, its interface has no address.
        pod.interface.set_addresses()
    pod.run(130)
    assert pod.nodez == EXPIRED_WITH_USABLE_KEY
    assert pod.key != old_key
    assert json.loads(pod.key_file.with_name("authkey.id").read_text())["node_id"] == str(old_id)

    pod.start_tailscale()
    assert (pod.node_id, pod.address) == (old_id, old_address)
    pod.run(60)
    assert (pod.nodez, published_addresses(world)) == (REGISTERED, [pod.address])
    assert len(world.cloudflare.writes) == writes


@pytest.mark.parametrize(("skew_days", "nodez"), [(400, REGISTERED), (-400, EXPIRED_WITH_USABLE_KEY)])
def test_expiry_is_compared_with_the_clock_of_headscale(
    world: World, tmp_path: Path, skew_days: int, nodez: Nodez
) -> None:
    """This machine's clock is wrong. By Headscale's clock, the node expires in 30 days, or expired 30 days ago."""
    pod = Pod(world, tmp_path / "pod", {"SELF_HEAL": "true"})
    pod.start()
    world.headscale.expire_node(pod.node_id, world.clock.true_now() + timedelta(days=30 if skew_days > 0 else -30))
    world.clock.skew = timedelta(days=skew_days)
    pod.run(130)
    assert (pod.nodez, key_count(world)) == (nodez, 2 if nodez.restart_helps else 1)
    pod.new_watch()
    pod.watch.run_pass()
    assert pod.watch.state.is_registered == (nodez == REGISTERED)


@pytest.mark.parametrize("skew_days", [400, -400])
def test_expiry_of_a_key_is_compared_with_the_clock_of_headscale(world: World, tmp_path: Path, skew_days: int) -> None:
    pod = a_pod(world, tmp_path / "pod")
    world.clock.skew = timedelta(days=skew_days)
    delete_node(pod)
    pod.run(300)
    assert (pod.nodez, key_count(world)) == (GONE_WITH_USABLE_KEY, 2)


def test_a_new_key_that_is_not_in_the_file_is_replaced(world: World, tmp_path: Path) -> None:
    """The process died between writing the metadata and the key: the file still contains the used key."""
    pod = a_pod(world, tmp_path / "pod")
    old_key = pod.key
    delete_node(pod)
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=200)
    pod.key_file.write_text(old_key)
    pod.new_watch()
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=200)
    assert pod.key != old_key
    assert world.usable_keys() == [pod.key]
    pod.start_tailscale()
    pod.run_until(REGISTERED, within_s=60)


def test_metadata_of_a_new_key_names_the_lost_node(world: World, tmp_path: Path) -> None:
    """A restarted dns-watch reads in the metadata which node is expected to register again."""
    pod = a_pod(world, tmp_path / "pod")
    delete_node(pod)
    pod.run(130)
    new_key = pod.key
    pod.new_watch()
    pod.run(130)
    assert (pod.nodez, pod.key) == (GONE_WITH_USABLE_KEY, new_key)
    assert key_count(world) == 2


def test_a_used_key_of_an_unregistered_pod_is_replaced(world: World, tmp_path: Path) -> None:
    """The client registers with the key that is in the file when it starts, so dns-watch requests no restart."""
    pod = Pod(world, tmp_path / "pod", {"SELF_HEAL": "true", "MAX_RETRIES": "0"})
    pod.start()
    old_key = pod.key
    pod.client.stop()
    pod.interface.set_addresses(None)  # remove the interface
    delete_node(pod)
    pod.run(130)
    assert pod.key != old_key
    assert pod.nodez == WAITING
    pod.start_tailscale()
    pod.run(5)
    assert pod.nodez == REGISTERED


def test_an_expired_key_of_an_unregistered_pod_is_replaced(world: World, tmp_path: Path) -> None:
    """The image takes two hours to pull, and the key expires after one hour."""
    pod = Pod(
        world,
        tmp_path / "pod",
        {"SELF_HEAL": "true", "MAX_RETRIES": "0", "POLL_INTERVAL": SLOW, "RETRY_INTERVAL": SLOW},
    )
    pod.cleanup()
    old_key = pod.key
    pod.run(HOUR_S - 120)
    assert pod.key == old_key
    pod.run(HOUR_S)
    assert pod.key != old_key
    pod.start_tailscale()
    pod.run(5)
    assert (pod.nodez, published_addresses(world)) == (REGISTERED, [pod.address])


# --- No new key -------------------------------------------------------------------------------------


# Responses of Headscale. The incomplete list lacks the nodes with our hostname.
NOT_FOUND = answer(404, json.dumps({"code": 5, "message": "node not found", "details": []}))
EMPTY_LIST = answer(200, json.dumps({"nodes": []}))
INCOMPLETE_LIST = omit_items(NAME)
OTHER_USERS = answer(200, json.dumps({"users": [{"id": "1", "name": "admin"}]}))


def make_headscale_fail(world: World, faults: Mapping[str | None, Fault]) -> None:
    """Make the requests to each path fail in the given way. The path None stands for all paths."""
    for path, fault in faults.items():
        world.headscale.faults.add(fault, path=path, times=None)


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
@pytest.mark.parametrize(
    ("faults", "duration_s"),
    [
        pytest.param({NODE: NOT_FOUND, NODES: EMPTY_LIST}, 270.0, id="empty list for less than five minutes"),
        pytest.param({NODES: EMPTY_LIST}, LONG_S, id="empty list, but the node exists"),
        pytest.param({NODE: html(404), NODES: EMPTY_LIST}, LONG_S, id="404 of a proxy and an empty list"),
        pytest.param({NODE: NOT_FOUND, NODES: EMPTY_LIST, USERS: OTHER_USERS}, LONG_S, id="database without our user"),
        pytest.param({NODE: NOT_FOUND}, LONG_S, id="node not found, but listed"),
        pytest.param({NODE: NOT_FOUND, NODES: INCOMPLETE_LIST}, 50.0, id="incomplete list for less than a minute"),
        pytest.param({NODE: html(404), NODES: INCOMPLETE_LIST}, LONG_S, id="404 of a proxy and an incomplete list"),
        pytest.param({None: html(404)}, LONG_S, id="404 of a proxy"),
        pytest.param({None: answer(404, '{"error": "not found"}')}, LONG_S, id="404 of a proxy in JSON"),
        pytest.param({None: answer(404, "default backend - 404", content_type="text/plain")}, LONG_S, id="404 as text"),
        pytest.param({None: html(503)}, LONG_S, id="503"),
        pytest.param({None: html(200)}, LONG_S, id="HTML page"),
        pytest.param({None: malformed_json()}, LONG_S, id="malformed JSON"),
        pytest.param({None: refuse()}, LONG_S, id="connection refused"),
    ],
)
def test_a_headscale_failure_is_not_a_lost_node(
    world: World,
    tmp_path: Path,
    events: list[Any],
    faults: Mapping[str | None, Fault],
    duration_s: float,
    has_interface: bool,
) -> None:
    """No key is created, no restart is requested, and the record is not changed."""
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface, HEADSCALE_USER="svc")
    key, writes, count = pod.key, len(world.cloudflare.writes), key_count(world)
    make_headscale_fail(world, faults)
    pod.run(duration_s)
    assert pod.nodez.restart_helps is False
    world.headscale.faults.clear()
    pod.run(120)
    assert pod.nodez == REGISTERED
    assert (pod.key, key_count(world), len(world.cloudflare.writes)) == (key, count, writes)
    assert "node.lost" not in event_names(events)


@pytest.mark.parametrize("has_interface", [True, False], ids=["interface", "user-space"])
def test_an_offline_node_is_not_a_lost_node(
    world: World, tmp_path: Path, events: list[Any], has_interface: bool
) -> None:
    """After a restart of Headscale, every node is offline."""
    pod = a_pod(world, tmp_path / "pod", has_interface=has_interface)
    key, writes = pod.key, len(world.cloudflare.writes)
    world.headscale.restart()
    pod.run(LONG_S)
    assert (pod.nodez, pod.key, len(world.cloudflare.writes)) == (REGISTERED, key, writes)
    assert "node.lost" not in event_names(events)


def test_a_reusable_key_is_kept_until_it_expires(world: World, tmp_path: Path) -> None:
    """A node can register again with a reusable key. Even without SELF_HEAL, dns-watch reports that a restart helps."""
    pod = a_pod(
        world, tmp_path / "pod", SELF_HEAL="false", AUTHKEY_REUSABLE="true", POLL_INTERVAL=SLOW, RETRY_INTERVAL=SLOW
    )
    key = pod.key
    delete_node(pod)
    pod.run(600)
    assert (pod.nodez, pod.key) == (GONE_WITH_USABLE_KEY, key)
    pod.run(HOUR_S)
    assert (pod.nodez, pod.key) == (GONE, key)


@pytest.mark.parametrize("is_watch_restarted", [False, True])
def test_without_an_interface_a_second_node_of_a_reusable_key_is_published(
    any_world: World, tmp_path: Path, is_watch_restarted: bool
) -> None:
    """The tailscale container lost its state, and has registered a second node with the key of this pod."""
    pod = Pod(any_world, tmp_path / "pod", {"AUTHKEY_REUSABLE": "true"}, has_interface=False)
    pod.start()
    pod.run(600)
    first = pod.node_id
    pod.client.stop()
    (pod.key_file.parent / STATE_FILE).unlink()
    pod.start_tailscale()
    if is_watch_restarted:
        pod.new_watch()
    pod.run(600)
    assert pod.node_id != first
    assert published_addresses(any_world) == [pod.address]
    # After a restart of Headscale, both nodes are offline for a while.
    any_world.headscale.restart()
    pod.run(120)
    assert published_addresses(any_world) == [pod.address]
    assert pod.nodez == REGISTERED


def test_a_stranded_pod_with_an_unused_key_is_not_restarted(world: World, tmp_path: Path) -> None:
    """A stranded pod has a VPN address that no node has. Its client may be registered at another Headscale server."""
    pod = Pod(
        world,
        tmp_path / "pod",
        {"SELF_HEAL": "true", "MAX_RETRIES": "0", "POLL_INTERVAL": SLOW, "RETRY_INTERVAL": SLOW},
    )
    pod.cleanup()
    pod.interface.set_addresses("100.64.99.1")
    pod.run(2 * HOUR_S)
    assert pod.nodez == Nodez("stranded", restart_helps=False)


def test_a_stranded_pod_gets_no_new_key_if_another_node_of_ours_exists(world: World, tmp_path: Path) -> None:
    """The other node may be this pod's node with a new address."""
    pod = a_pod(world, tmp_path / "pod", MAX_RETRIES="0", POLL_INTERVAL=SLOW, RETRY_INTERVAL=SLOW)
    key = pod.key
    pod.interface.set_addresses("100.64.99.1")
    pod.new_watch()
    pod.run(2 * HOUR_S)
    assert (pod.nodez, pod.key) == (WAITING, key)


# --- One key at a time ------------------------------------------------------------------------------


def run_with_one_usable_key(pod: Pod, seconds: float) -> None:
    """Run the pod, and check after each pass that at most one key is usable."""
    until = pod.world.clock.elapsed_s + seconds
    while pod.world.clock.elapsed_s < until:
        wait_s = pod.watch.run_pass()
        assert len(pod.world.usable_keys()) <= 1
        pod.world.clock.sleep(wait_s)


@pytest.mark.max_cases_without_full(1)
def test_at_most_one_usable_key_exists(any_world: World, tmp_path: Path) -> None:
    """If no client uses a new key, the next key is created only after the new key has expired, an hour later."""
    pod = a_pod(any_world, tmp_path / "pod", POLL_INTERVAL=SLOW, RETRY_INTERVAL=SLOW)
    before = key_count(any_world)
    delete_node(pod)
    run_with_one_usable_key(pod, 8 * HOUR_S)
    assert 4 <= key_count(any_world) - before <= 8


def test_a_key_whose_response_was_lost_is_expired(any_world: World, tmp_path: Path) -> None:
    world = any_world
    pod = a_pod(world, tmp_path / "pod")
    old_key = pod.key
    delete_node(pod)
    world.headscale.faults.add(drop(after_execution=True), method="POST", path=KEYS)
    run_with_one_usable_key(pod, 600)
    assert world.headscale.faults.pending == 0
    assert pod.key != old_key
    assert world.usable_keys() == [pod.key]
    assert pod.nodez == GONE_WITH_USABLE_KEY


def test_failing_key_creation_is_retried_with_backoff(world: World, tmp_path: Path, events: list[Any]) -> None:
    """While the creation fails for six hours, the health port reports the loss."""
    pod = a_pod(world, tmp_path / "pod", POLL_INTERVAL=SLOW, RETRY_INTERVAL=SLOW)
    delete_node(pod)
    world.headscale.faults.add(html(500), method="POST", path=KEYS, times=None)
    pod.run(6 * HOUR_S)
    assert pod.nodez == GONE
    attempts = [exchange for exchange in world.headscale.writes if exchange.path == "/api/v1/preauthkey"]
    assert 4 <= len(attempts) <= 12
    world.headscale.faults.clear()
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=2 * HOUR_S)


def test_no_key_is_created_if_the_folder_is_not_writable(world: World, tmp_path: Path, events: list[Any]) -> None:
    """The old key stays in the file."""
    pod = a_pod(world, tmp_path / "pod")
    old_key, count = pod.key, key_count(world)
    delete_node(pod)
    # dns-watch creates a temporary file to check that it can write. A folder with the name of this file prevents it.
    blocked = pod.key_file.with_name(".authkey.tmp")
    blocked.mkdir()
    pod.run(HOUR_S)
    assert (pod.nodez, pod.key, key_count(world)) == (GONE, old_key, count)
    assert 2 <= len(events_named(events, "key_file.unwritable")) <= 8
    blocked.rmdir()
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=2 * HOUR_S)


# --- Until the node is registered again -----------------------------------------------------------------------------


def test_a_restart_marker_of_an_earlier_process_is_removed(world: World, tmp_path: Path) -> None:
    pod = a_pod(world, tmp_path / "pod")
    pod.restart_marker.write_text("8")
    pod.new_watch().run_pass()
    assert not pod.restart_marker.exists()


def test_a_new_node_of_this_pod_is_not_a_successor(world: World, tmp_path: Path, events: list[Any]) -> None:
    """A successor is the node of a later pod. This pod's interface does not have the address of its new node yet."""
    pod = a_pod(world, tmp_path / "pod")
    delete_node(pod)
    pod.run(130)
    pod.interface.set_addresses()
    new = pod.client.start()
    pod.run(10)
    assert pod.nodez == GONE
    pod.interface.set_addresses(*new.addresses)
    pod.run(10)
    assert (pod.nodez, published_addresses(world)) == (REGISTERED, [pod.address])
    assert "node.superseded" not in event_names(events)


def test_no_restart_is_requested_with_a_used_key(world: World, tmp_path: Path) -> None:
    """The client has used the key in user space mode, and the list does not contain the new node yet."""
    pod = a_pod(world, tmp_path / "pod", has_interface=False)
    delete_node(pod)
    pod.run_until(GONE_WITH_USABLE_KEY, within_s=130)
    pod.client.start()
    world.headscale.faults.add(omit_items(NAME), method="GET", path=NODES, times=1)
    pod.watch.run_pass()
    assert world.headscale.faults.pending == 0
    assert pod.nodez == GONE
    pod.run(30)
    assert (pod.nodez, published_addresses(world)) == (REGISTERED, [pod.address])
    assert key_count(world) == 2


def test_the_health_port_reports_a_lost_node(world: World, tmp_path: Path) -> None:
    """The loss is visible in `/nodez`, `/readyz` and the metrics."""
    pod = a_pod(world, tmp_path / "pod")
    delete_node(pod)
    pod.run(130)
    status = pod.watch.status
    assert status.node() == {
        "state": "gone",
        "node_id": str(pod.node_id),
        "superseded_by": None,
        "restart_helps": True,
    }
    assert not status.ready
    _, metrics = render_metrics(status, accept="")
    for line in ("node_registered 0.0", "node_lost 1.0", "node_restart_helps 1.0", "record_in_sync 0.0"):
        assert f"\ntailscale_lifecycle_{line}\n".encode() in metrics


def test_the_loss_is_reported_even_if_keys_cannot_be_listed(world: World, tmp_path: Path, events: list[Any]) -> None:
    pod = a_pod(world, tmp_path / "pod")
    delete_node(pod)
    world.headscale.faults.add(html(500), method="GET", path=KEYS)
    for _ in range(3):
        assert "node.lost" not in event_names(events)
        world.clock.sleep(31)
        pod.watch.run_pass()
    assert (pod.nodez, world.headscale.faults.pending) == (GONE, 0)
    assert "node.lost" in event_names(events)
    assert pod.watch.state.is_registered is False
