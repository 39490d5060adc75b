"""Neither a dry run nor status changes anything, in any state of the pod."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lifecycle import dry_run
from lifecycle.dry_run import plan_commands
from lifecycle.report import Report
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, DryRunSettings, PruneSettings, StatusSettings
from tests.builders import MARK, NAME
from tests.simulators.serve import serve
from tests.simulators.tailnet import Node
from tests.world import USER, World

DRY_RUNS: dict[str, Callable[[], Report]] = {
    "all": lambda: plan_commands(load(DryRunSettings)),
    "cleanup": lambda: plan_commands(load(CleanupSettings)),
    "dns-watch": lambda: plan_commands(load(DnsWatchSettings)),
    "prune": lambda: plan_commands(load(PruneSettings)),
    "prune --name": lambda: plan_commands(load(PruneSettings), name=NAME),
}

Variables = dict[str, str]


def registered(world: World) -> Node:
    """Run cleanup, and register the pod's node with the fresh key."""
    world.cleanup().run()
    node = world.headscale.register(key=world.key, hostname=NAME)
    world.headscale.connect(node.id)
    return node


def note(world: World, node: Node) -> None:
    """Write the node into the metadata, as dns-watch does."""
    path = world.key_file.with_name("authkey.id")
    values = json.loads(path.read_text())
    values |= {"kept_node_id": str(node.id), "kept_machine_key": node.machine_key}
    path.write_text(json.dumps(values))


def unregistered(world: World) -> Variables:
    """cleanup has run, and the node has not registered yet."""
    world.cleanup().run()
    return {}


def first_start(world: World) -> Variables:
    """An earlier pod left a node and a record, and cleanup has not run yet."""
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, comment=MARK)
    return {}


def registered_and_not_noted(world: World) -> Variables:
    registered(world)
    return {}


def registered_and_noted(world: World) -> Variables:
    note(world, registered(world))
    return {}


def record_out_of_sync(world: World) -> Variables:
    note(world, registered(world))
    world.add_record("100.64.0.99", comment=MARK)
    world.add_record("100.64.0.98")
    return {}


def lost(world: World) -> Variables:
    """The node in the metadata was deleted, and another node is online."""
    node = registered(world)
    note(world, node)
    world.headscale.delete_node(node.id)
    world.headscale.add_node("wiki.example.com", user=USER)
    return {}


def healing_due(world: World) -> Variables:
    """The node in the metadata was deleted, and its key is used."""
    return lost(world) | {"SELF_HEAL": "true"}


def superseded(world: World) -> Variables:
    """A later pod's node is online and published."""
    note(world, registered(world))
    later = world.headscale.add_node(NAME, user=USER)
    world.add_record(later.address, ttl=60, comment=MARK)
    return {}


def kept(world: World) -> Variables:
    """The state Secret names the node of the earlier pod."""
    node = world.headscale.add_node(NAME, user=USER, online=False)
    world.add_record(node.address, ttl=60, comment=MARK)
    return {"NODE_POLICY": "keep", "TS_KUBE_SECRET": "state"}


def gone_for_long(world: World) -> Variables:
    """The node has been offline for a month."""
    first_start(world)
    world.headscale.add_node("wiki.example.com", user=USER)
    world.clock.sleep(30 * 86_400.0)
    return {}


STATES = [
    first_start,
    unregistered,
    registered_and_not_noted,
    registered_and_noted,
    record_out_of_sync,
    lost,
    healing_due,
    superseded,
    kept,
    gone_for_long,
]


@contextmanager
def served(world: World, monkeypatch: pytest.MonkeyPatch, variables: Variables) -> Iterator[None]:
    """Set the environment of a pod that reaches both upstreams on loopback."""
    with serve(world.headscale) as headscale, serve(world.cloudflare) as cloudflare:
        urls = {"HEADSCALE_URL": headscale, "CLOUDFLARE_API_URL": f"{cloudflare}/client/v4"}
        owner = {"DNS_OWNER": MARK.partition(" ")[2], "TAILSCALE_INTERFACE": ""}
        for name, value in (world.environment | urls | owner | variables).items():
            monkeypatch.setenv(name, value)
        yield


def everything(world: World) -> tuple[Any, ...]:
    """Return the volume, Headscale and Cloudflare as they are."""
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
def test_zone_of_another_name_is_a_problem(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, tmp_path)
    with served(world, monkeypatch, {"CLOUDFLARE_ZONE_ID": world.cloudflare.add_zone("example.org")}):
        assert any("CLOUDFLARE_ZONE_ID" in problem for problem in DRY_RUNS[name]().problems)


def test_dry_run_reads_each_list_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, tmp_path)
    variables = registered_and_not_noted(world)
    world.headscale.requests.clear()
    with served(world, monkeypatch, variables):
        assert not DRY_RUNS["all"]().problems
    read = [exchange.path for exchange in world.headscale.requests]
    assert (read.count("/api/v1/node"), read.count("/api/v1/user")) == (1, 1)


@pytest.mark.parametrize("state", STATES)
def test_dry_run_changes_nothing(
    state: Callable[[World], Variables], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path)
    variables = state(world)
    # No state needs the Kubernetes API for anything else than the state Secret.
    monkeypatch.setattr(dry_run, "connect_cluster", lambda *_, **__: None)
    monkeypatch.setattr(dry_run, "state_reader", lambda *_: lambda: {"device_id": b"1"})
    before = everything(world)

    with served(world, monkeypatch, variables):
        for name, plan in DRY_RUNS.items():
            report = plan()

            assert everything(world) == before, name
            assert report.sections, name

        assert dry_run.status(load(StatusSettings), redact=False)["context"]
        assert everything(world) == before
