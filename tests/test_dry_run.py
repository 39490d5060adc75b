"""Test that dry runs and `lifecycle status` change nothing, whatever the state of the pod, its node and its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lifecycle import dry_run
from lifecycle.dry_run import plan_commands
from lifecycle.report import Report
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, DryRunSettings, PruneSettings, StatusSettings
from tests.builders import NAME, OUR_COMMENT
from tests.simulators.serve import serve
from tests.simulators.tailnet import Node
from tests.world import USER, World

DRY_RUNS: dict[str, Callable[[], Report]] = {
    "cleanup and dns-watch": lambda: plan_commands(load(DryRunSettings)),
    "cleanup": lambda: plan_commands(load(CleanupSettings)),
    "dns-watch": lambda: plan_commands(load(DnsWatchSettings)),
    "prune": lambda: plan_commands(load(PruneSettings)),
    "prune --name": lambda: plan_commands(load(PruneSettings), name=NAME),
}

Variables = dict[str, str]


def register_node(world: World) -> Node:
    """Run cleanup, and register the pod's node with the new key."""
    world.cleanup().run()
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    return node


def write_metadata(world: World, node: Node) -> None:
    """Write the node into the key metadata (the file beside the key file), as dns-watch does when it knows its node."""
    path = world.key_file.with_name("authkey.id")
    values = json.loads(path.read_text())
    values |= {"node_id": str(node.id), "machine_key": node.machine_key}
    path.write_text(json.dumps(values))


# Each of these functions creates a state, and returns the additional settings of the pod.


def pod_before_cleanup(world: World) -> Variables:
    """An earlier pod left a node and a record, and cleanup has not run yet."""
    world.add_leftovers()
    return {}


def unregistered_node(world: World) -> Variables:
    """cleanup has run, and the node has not registered yet."""
    world.cleanup().run()
    return {}


def newly_registered_node(world: World) -> Variables:
    """The node has just registered, and the key metadata does not contain it yet."""
    register_node(world)
    return {}


def identified_node(world: World) -> Variables:
    """The key metadata contains the node."""
    write_metadata(world, register_node(world))
    return {}


def record_out_of_sync(world: World) -> Variables:
    """The name has two records with other addresses."""
    write_metadata(world, register_node(world))
    world.add_record("100.64.0.99", comment=OUR_COMMENT)
    world.add_record("100.64.0.98")
    return {}


def lost_node(world: World) -> Variables:
    """The node in the key metadata was deleted. Another node exists, because an empty list could be an error."""
    node = register_node(world)
    write_metadata(world, node)
    world.headscale.delete_node(node.id)
    world.headscale.add_node("wiki.example.com", user=USER)
    return {}


def lost_node_with_self_heal(world: World) -> Variables:
    """The node in the key metadata was deleted, and dns-watch would create a new key."""
    return lost_node(world) | {"SELF_HEAL": "true"}


def superseded_node(world: World) -> Variables:
    """A later pod's node is online, and the record has its address."""
    write_metadata(world, register_node(world))
    later = world.headscale.add_node(NAME, user=USER)
    world.add_record(later.address, ttl=60, comment=OUR_COMMENT)
    return {}


def kept_node(world: World) -> Variables:
    """The new pod keeps the node of the earlier pod, because the state Secret contains the id of this node."""
    world.add_leftovers()
    return {"NODE_POLICY": "keep", "TS_KUBE_SECRET": "state"}


def workload_removed_a_month_ago(world: World) -> Variables:
    """The workload was removed a month ago, so prune would delete its node and record."""
    pod_before_cleanup(world)
    world.headscale.add_node("wiki.example.com", user=USER)
    world.clock.sleep(30 * 86_400.0)
    return {}


STATES = [
    pod_before_cleanup,
    unregistered_node,
    newly_registered_node,
    identified_node,
    record_out_of_sync,
    lost_node,
    lost_node_with_self_heal,
    superseded_node,
    kept_node,
    workload_removed_a_month_ago,
]


@contextmanager
def served(world: World, monkeypatch: pytest.MonkeyPatch, variables: Variables) -> Iterator[None]:
    """Serve both simulators on loopback, and set the environment of a pod that uses them."""
    with serve(world.headscale) as headscale, serve(world.cloudflare) as cloudflare:
        urls = {"HEADSCALE_URL": headscale, "CLOUDFLARE_API_URL": f"{cloudflare}/client/v4"}
        pod_variables = {"DNS_OWNER": OUR_COMMENT.partition(" ")[2], "TAILSCALE_INTERFACE": ""}
        for name, value in (world.environment | urls | pod_variables | variables).items():
            monkeypatch.setenv(name, value)
        yield


def snapshot(world: World) -> tuple[Any, ...]:
    """Return the content of the volume and of both simulators, and the number of write requests."""
    volume = world.key_file.parent
    files = [(path.name, path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in volume.iterdir()]
    return (
        sorted(files),
        world.headscale.backup(),
        world.cloudflare.records(world.zone_id),
        len(world.headscale.writes),
        len(world.cloudflare.writes),
    )


@pytest.mark.parametrize("name", DRY_RUNS)
def test_zone_id_of_another_zone_is_a_problem(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(world, monkeypatch, {"CLOUDFLARE_ZONE_ID": world.cloudflare.add_zone("example.org")}):
        report = DRY_RUNS[name]()
        assert all(len(section.problems) == 1 for section in report.sections)
        assert all("CLOUDFLARE_ZONE_ID is the zone example.org" in problem for problem in report.problems)


def test_dry_run_reads_each_list_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = newly_registered_node(world)
    world.headscale.requests.clear()
    with served(world, monkeypatch, variables):
        assert not DRY_RUNS["cleanup and dns-watch"]().problems
    paths = [exchange.path for exchange in world.headscale.requests]
    assert (paths.count("/api/v1/node"), paths.count("/api/v1/user")) == (1, 1)


@pytest.mark.parametrize("create_state", STATES)
def test_dry_run_and_status_change_nothing(
    create_state: Callable[[World], Variables], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = create_state(world)
    # These commands read only the state Secret from the Kubernetes API. It contains the id of the pod's node.
    monkeypatch.setattr(dry_run, "connect_cluster", lambda *_, **__: None)
    monkeypatch.setattr(dry_run, "state_reader", lambda *_: lambda: {"device_id": b"1"})
    before = snapshot(world)

    with served(world, monkeypatch, variables):
        for name, plan in DRY_RUNS.items():
            report = plan()

            assert snapshot(world) == before, name
            assert report.sections, name

        assert dry_run.status(load(StatusSettings), redact=False)["context"]
        assert snapshot(world) == before
