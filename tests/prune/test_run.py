"""`prune` against both services: what it removes, and when it refuses to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle.errors import ApiError, BrakeError, ConfigError, LifecycleError, StoppedError
from lifecycle.prune.run import OBSERVATION_S, Prune
from lifecycle.retry import once
from lifecycle.settings import PruneSettings
from tests.simulators import faults
from tests.world import StopAt, World

OWNER = "monitoring"
MARK = f"tailscale-lifecycle/1 {OWNER}"
A_MONTH_S = timedelta(days=30).total_seconds()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def a_service(world: World, label: str, *, mark: str = MARK) -> int:
    """A service of ours that runs: a node that is online, and its record; the node's id."""
    node = world.headscale.add_node(f"{label}.example.com", user="svc")
    world.cloudflare.add_record(
        world.zone_id, type="A", name=f"{label}.example.com", content=node.address, ttl=60, comment=mark
    )
    return node.id


def prune(world: World, name: str | None = None, *, stop: StopAt | None = None, **variables: str) -> Prune:
    settings = world.settings(PruneSettings, **({"DNS_OWNER": OWNER} | variables))
    headscale, cloudflare = world.services(settings, once())
    return Prune(
        settings,
        headscale=headscale,
        cloudflare=cloudflare,
        name=name,
        now=world.clock.now,
        stop=stop or StopAt(world.clock),
    )


def names(world: World) -> list[str]:
    return sorted(record.name for record in world.cloudflare.records(world.zone_id))


def test_what_has_been_gone_for_long_goes_and_the_rest_stays(world: World, events: list[dict[str, Any]]) -> None:
    lives = a_service(world, "grafana")
    gone = a_service(world, "redmine")
    foreign = a_service(world, "wiki", mark="tailscale-lifecycle/1 other")
    bare = world.headscale.add_node("laptop", user="svc").id
    for node_id in (gone, foreign, bare):
        world.headscale.disconnect(node_id)
    world.clock.sleep(A_MONTH_S)
    prune(world).run()
    assert names(world) == ["grafana.example.com", "wiki.example.com"]
    assert sorted(node.id for node in world.headscale.nodes) == sorted([lives, foreign, bare])
    assert [event["event"] for event in events if event["event"].endswith(".deleted")] == [
        "node.deleted",
        "record.deleted",
    ]


def test_it_looks_twice_some_time_apart(world: World) -> None:
    """A node that comes back in between, as all do after a restart of Headscale, stays."""
    lives = a_service(world, "grafana")
    slow = a_service(world, "redmine")
    world.headscale.disconnect(slow)
    world.clock.sleep(A_MONTH_S)
    world.clock.at(world.clock.elapsed_s + OBSERVATION_S / 2, lambda: world.headscale.connect(slow))
    prune(world).run()
    assert sorted(node.id for node in world.headscale.nodes) == [lives, slow]
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    assert world.cloudflare.writes == []


def test_it_looks_no_third_time(world: World) -> None:
    """Who is offline at both looks is gone, whoever would have come after."""
    a_service(world, "grafana")
    late = a_service(world, "redmine")
    world.headscale.disconnect(late)
    world.clock.sleep(A_MONTH_S)
    started = world.clock.elapsed_s
    prune(world).run()
    assert OBSERVATION_S <= world.clock.elapsed_s - started < OBSERVATION_S + 60
    assert world.headscale.node(late) is None
    assert names(world) == ["grafana.example.com"]


def test_a_restarted_headscale_loses_nothing(world: World) -> None:
    for label in ("grafana", "redmine"):
        a_service(world, label)
    world.clock.sleep(A_MONTH_S)
    world.headscale.restart()
    prune(world).run()
    assert len(world.headscale.nodes) == len(names(world)) == 2


def test_the_brake_gives_the_numbers_and_removes_nothing(world: World) -> None:
    a_service(world, "grafana")
    for number in range(3):
        world.headscale.disconnect(a_service(world, f"gone-{number}"))
    world.clock.sleep(A_MONTH_S)
    with pytest.raises(BrakeError, match=r"3 services \(3 nodes, 3 records\).*PRUNE_MAX is 2"):
        prune(world, PRUNE_MAX="2").run()
    assert len(world.headscale.nodes) == 4
    assert world.cloudflare.writes == []
    prune(world, PRUNE_MAX="3").run()
    assert names(world) == ["grafana.example.com"]


def test_one_service_is_taken_down_at_once(world: World) -> None:
    lives = a_service(world, "grafana")
    a_service(world, "redmine")
    stop = StopAt(world.clock)
    prune(world, "redmine", stop=stop).run()
    assert [node.id for node in world.headscale.nodes] == [lives]
    assert names(world) == ["grafana.example.com"]
    assert stop.waits == []


@pytest.mark.parametrize("name", ["wiki", "nothing.example.com"])
def test_a_name_without_our_mark_is_refused(world: World, name: str) -> None:
    node_id = a_service(world, "wiki", mark="tailscale-lifecycle/1 other")
    with pytest.raises(LifecycleError, match="DNS_OWNER"):
        prune(world, name).run()
    assert world.headscale.node(node_id) is not None
    assert names(world) == ["wiki.example.com"]


def test_what_was_interrupted_is_found_again(world: World) -> None:
    """Nodes go first: after a failure the record is still there, and the next run goes on."""
    a_service(world, "grafana")
    world.headscale.disconnect(a_service(world, "redmine"))
    world.clock.sleep(A_MONTH_S)
    world.cloudflare.faults.add(faults.html(503), method="DELETE")
    with pytest.raises(ApiError):
        prune(world).run()
    assert names(world) == ["grafana.example.com", "redmine.example.com"]
    prune(world).run()
    assert names(world) == ["grafana.example.com"]


@pytest.mark.parametrize("path", ["/api/v1/node", "/dns_records"])
def test_what_cannot_be_read_removes_nothing(world: World, path: str) -> None:
    world.headscale.disconnect(a_service(world, "redmine"))
    a_service(world, "grafana")
    world.clock.sleep(A_MONTH_S)
    for simulator in (world.headscale, world.cloudflare):
        simulator.faults.add(faults.truncate(), path=path, times=None)
    with pytest.raises(ApiError):
        prune(world).run()
    assert len(world.headscale.nodes) == len(names(world)) == 2


def test_asked_to_stop_while_it_looks_it_removes_nothing(world: World) -> None:
    world.headscale.disconnect(a_service(world, "redmine"))
    a_service(world, "grafana")
    world.clock.sleep(A_MONTH_S)
    with pytest.raises(StoppedError):
        prune(world, stop=StopAt(world.clock, world.clock.elapsed_s)).run()
    assert len(world.headscale.nodes) == 2


def test_an_owner_has_to_be_named(world: World) -> None:
    with pytest.raises(ConfigError, match="DNS_OWNER: is required"):
        world.settings(PruneSettings, DNS_OWNER="")


def test_it_works_in_a_pod_of_any_name(world: World) -> None:
    settings = world.settings(PruneSettings, DNS_OWNER=OWNER, HOSTNAME="prune-28391-x7k2p")
    assert settings.mark == MARK
