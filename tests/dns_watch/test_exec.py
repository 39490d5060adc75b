"""Test `dns-watch` with HEADSCALE_ACCESS=exec, which runs commands in Headscale's pod instead of using the HTTP API.

Each request starts a process in this pod, so dns-watch polls less often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.builders import NAME
from tests.in_cluster import ClusterWorld
from tests.simulators import faults
from tests.simulators.headscale_cli import Finished
from tests.world import USER, Interface, events_named

Events = list[Any]

HOUR_S = 3600.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    """Simulators of Headscale, Cloudflare and Kubernetes, and a simulated clock."""
    return ClusterWorld(monkeypatch, tmp_path)


def record_node_lists(world: ClusterWorld) -> list[float]:
    """Return a list to which the time of each later request for the list of nodes is added."""
    times: list[float] = []

    def cli_with_times(argv: Sequence[str]) -> Finished:
        if "nodes" in argv:
            times.append(world.clock.elapsed_s)
        return world.cli(argv)

    world.pod = world.kubernetes.change_pod(world.pod, containers={"headscale": {"headscale": cli_with_times}})
    return times


def shortest_interval(times: Sequence[float]) -> float:
    return min(later - earlier for earlier, later in pairwise(times))


def registered_interface(world: ClusterWorld) -> Interface:
    """Register a node and return its interface."""
    return Interface(*world.headscale.add_node(NAME, user=USER).addresses)


@pytest.mark.parametrize(
    ("setting", "minimum_s"), [("", 60), ("1s", 60), ("90s", 90), ("10m", 600)], ids=["default", "1s", "90s", "10m"]
)
def test_polls_are_at_least_a_minute_apart(setting: str, minimum_s: float, world: ClusterWorld) -> None:
    times = record_node_lists(world)
    watch = world.watch(registered_interface(world), POLL_INTERVAL=setting, VERIFY_INTERVAL="1h")
    world.run(watch, HOUR_S)
    assert shortest_interval(times) >= minimum_s
    # dns-watch adds up to a quarter to each interval.
    assert len(times) >= HOUR_S / (1.25 * minimum_s)
    assert watch.state.records.in_sync


def stop_headscale(world: ClusterWorld) -> None:
    world.cli.stopped = True


@pytest.mark.parametrize(
    "disrupt",
    [
        pytest.param(lambda world: world.cloudflare.faults.add(faults.html(503), times=None), id="Cloudflare fails"),
        pytest.param(stop_headscale, id="Headscale fails"),
        pytest.param(lambda world: world.headscale.delete_node(1), id="node deleted"),
    ],
)
def test_a_disruption_does_not_shorten_the_interval(
    disrupt: Callable[[ClusterWorld], object], world: ClusterWorld
) -> None:
    watch = world.watch(registered_interface(world))
    world.run(watch, 10)
    times = record_node_lists(world)
    disrupt(world)
    world.run(watch, HOUR_S)
    # If the node is not in the list, dns-watch immediately requests the list again, so two requests have the same time.
    assert shortest_interval(sorted(set(times))) >= 60


def test_lookups_before_registration_are_frequent(world: ClusterWorld) -> None:
    registered_at_s = 20
    times = record_node_lists(world)
    watch = world.watch(Interface("100.64.0.1"), MAX_RETRIES="0")
    world.clock.schedule(registered_at_s, lambda: world.headscale.add_node(NAME, user=USER))
    world.run(watch, 100)
    assert watch.state.records.in_sync
    assert sum(time_s <= registered_at_s for time_s in times) >= 5


def test_a_changed_address_is_published_within_three_seconds(world: ClusterWorld) -> None:
    interface = registered_interface(world)
    watch = world.watch(interface)
    world.run(watch, 100)
    times = record_node_lists(world)

    def change_address() -> None:
        interface.set_addresses(*world.headscale.readdress(1).addresses)

    world.clock.schedule(world.clock.elapsed_s + 5, change_address)
    world.run(watch, 5 + 3)
    assert times
    assert list(world.records()) == [f"A {world.headscale.nodes[0].address}"]


def test_the_slower_polling_is_logged_once(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(registered_interface(world))
    world.run(watch, HOUR_S)
    [event] = events_named(events, "poll.slowed")
    assert (event["interval_s"], "HEADSCALE_ACCESS=api" in event["reason"]) == (60.0, True)


def test_polling_over_the_api_is_not_slower(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(
        registered_interface(world),
        HEADSCALE_URL="http://headscale",
        HEADSCALE_API_KEY=world.headscale.api_key,
        POLL_INTERVAL="10s",
    )
    world.run(watch, 600)
    assert events_named(events, "poll.slowed") == []
    assert len(world.headscale.requests) > 40
    assert world.kubernetes.requests == []


def test_a_refused_exec_is_logged_and_does_not_end_dns_watch(world: ClusterWorld, events: Events) -> None:
    watch = world.watch(registered_interface(world))
    world.run(watch, 100)
    world.kubernetes.allow_nothing()
    world.run(watch, 300)
    refused = events_named(events, "pass.failed")
    assert {(event["log_level"], event["error_type"], event["upstream"]) for event in refused} == {
        ("error", "AuthError", "Kubernetes")
    }
    assert "resources: [pods]" in refused[0]["error"]
