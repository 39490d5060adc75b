"""`dns-watch` through Headscale's command line: each look costs the server a process, so they are few."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.builders import NAME
from tests.in_cluster import ClusterWorld
from tests.simulators import faults
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault
from tests.world import USER, Interface, named

Events = list[Any]

HOUR_S = 3600.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    return ClusterWorld(monkeypatch, tmp_path)


def looks(world: ClusterWorld) -> list[float]:
    """Record when Headscale's nodes are listed."""
    times: list[float] = []

    def timed(argv: Sequence[str]) -> Finished:
        if "nodes" in argv:
            times.append(world.clock.elapsed_s)
        return world.cli(argv)

    world.pod = world.kubernetes.change_pod(world.pod, containers={"headscale": {"headscale": timed}})
    return times


def least_pause(times: Sequence[float]) -> float:
    return min(later - earlier for earlier, later in pairwise(times))


def a_registered_world(world: ClusterWorld) -> Interface:
    """Register a node and return its interface."""
    return Interface(*world.headscale.add_node(NAME, user=USER).addresses)


def test_polls_of_a_registered_node_are_a_minute_apart(world: ClusterWorld) -> None:
    times = looks(world)
    watch = world.watch(a_registered_world(world))
    world.run(watch, HOUR_S)
    assert watch.state.records.in_sync
    assert least_pause(times) >= 60
    assert 45 <= len(times) <= 61


@pytest.mark.parametrize(
    ("setting", "least_s"), [("1s", 60), ("59s", 60), ("90s", 90), ("10m", 600)], ids=["1s", "59s", "90s", "10m"]
)
def test_poll_interval_can_lengthen_the_interval(setting: str, least_s: float, world: ClusterWorld) -> None:
    times = looks(world)
    watch = world.watch(a_registered_world(world), POLL_INTERVAL=setting, VERIFY_INTERVAL="1h")
    world.run(watch, HOUR_S)
    # In between, once, the new record is looked at again.
    assert least_pause(times) >= 60
    assert least_pause(times[2:]) >= least_s


def test_a_cloudflare_outage_does_not_shorten_the_interval(world: ClusterWorld) -> None:
    times = looks(world)
    world.cloudflare.faults.add(faults.html(503), times=None)
    watch = world.watch(a_registered_world(world))
    world.run(watch, HOUR_S)
    assert not watch.state.records.in_sync
    assert least_pause(times) >= 60


def test_a_headscale_failure_does_not_shorten_the_interval(world: ClusterWorld) -> None:
    times = looks(world)
    watch = world.watch(a_registered_world(world))
    world.run(watch, 10)
    times.clear()
    world.cli.stopped = True
    world.run(watch, HOUR_S)
    assert least_pause(times) >= 60
    world.cli.stopped = False
    world.run(watch, 200)
    assert watch.state.is_registered


def test_a_lost_node_does_not_shorten_the_interval(world: ClusterWorld) -> None:
    watch = world.watch(a_registered_world(world))
    world.run(watch, 10)
    times = looks(world)
    world.headscale.delete_node(1)
    world.run(watch, HOUR_S)
    # One look of a pass that misses the node reads it and then all there are.
    assert least_pause(sorted(set(times))) >= 60


def test_lookups_before_registration_are_frequent(world: ClusterWorld) -> None:
    times = looks(world)
    watch = world.watch(Interface("100.64.0.1"), MAX_RETRIES="0")
    world.clock.schedule(20, lambda: world.headscale.add_node(NAME, user=USER))
    world.run(watch, 100)
    assert watch.state.records.in_sync
    assert len([at for at in times if at <= 20]) >= 5


def test_a_changed_address_is_noticed_within_a_tick(world: ClusterWorld) -> None:
    interface = a_registered_world(world)
    watch = world.watch(interface)
    world.run(watch, 100)
    times = looks(world)

    def move() -> None:
        interface.set_addresses(*world.headscale.readdress(1).addresses)

    world.clock.schedule(world.clock.elapsed_s + 5, move)
    world.run(watch, 8)
    assert times
    assert list(world.records()) == [f"A {world.headscale.nodes[0].address}"]


def test_the_slower_polling_is_logged_once(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(a_registered_world(world))
    world.run(watch, HOUR_S)
    [event] = named(events, "poll.slowed")
    assert (event["interval_s"], "HEADSCALE_ACCESS=api" in event["reason"]) == (60.0, True)


def test_polling_over_the_api_is_not_slower(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(
        a_registered_world(world),
        HEADSCALE_URL="http://headscale",
        HEADSCALE_API_KEY=world.headscale.api_key,
        POLL_INTERVAL="10s",
    )
    world.run(watch, 600)
    assert named(events, "poll.slowed") == []
    assert len(world.headscale.requests) > 40
    assert world.kubernetes.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ExecFault(cut_after=3), id="cut"),
        pytest.param(ExecFault(before=b"garbage\n"), id="garbage before the response"),
        pytest.param(ExecFault(instead=Finished(stdout=b"garbage")), id="only garbage"),
        pytest.param(ExecFault(instead=Finished()), id="no output"),
        pytest.param(ExecFault(instead=Finished(1)), id="failure"),
    ],
)
def test_a_failed_exec_changes_nothing(fault: ExecFault, world: ClusterWorld) -> None:
    watch = world.watch(a_registered_world(world))
    world.run(watch, 100)
    before, written = world.records(), len(world.cloudflare.writes)
    world.kubernetes.spoil(fault, times=None)
    world.run(watch, HOUR_S)
    assert (world.records(), len(world.cloudflare.writes)) == (before, written)
    assert watch.state.heal.lost is None


def test_a_refused_exec_is_logged_and_does_not_exit(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(a_registered_world(world))
    world.run(watch, 100)
    world.kubernetes.allow_nothing()
    world.run(watch, 300)
    refused = named(events, "pass.failed")
    assert {(event["log_level"], event["error_type"], event["upstream"]) for event in refused} == {
        ("error", "AuthError", "Kubernetes")
    }
    assert "resources: [pods]" in refused[0]["error"]
