"""Hundreds of concurrent pods get keys and records, do not exit, and leave room in the rate limit of the account."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import TransientError
from tests.fleet.cooperative_clock import CooperativeClock
from tests.fleet.fleet import (
    BCRYPT_S,
    CLOUDFLARE_S,
    CORES,
    LIMIT,
    WINDOW_S,
    FleetWorld,
    SlowUpstream,
    busiest,
    route_through,
)
from tests.fleet.steady import steady_state
from tests.simulators.cloudflare import CloudflareSimulator
from tests.tally import add_measurement
from tests.world import USER, Clock, Interface

MINUTE_S = 60.0
HOUR_S = 3600.0

# A small fleet shows the same, with the rate limit scaled to it.
pods_at_once = pytest.mark.parametrize("pods", [40, pytest.param(200, marks=pytest.mark.full)])


class SimultaneousStart:
    """Pods that start at the same time.

    Args:
        used: requests that others, such as the dashboard, have already used of the rate limit.
        variables: settings of all pods.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, pods: int, *, used: int, **variables: str
    ) -> None:
        self.clock = CooperativeClock()
        self.world = FleetWorld(monkeypatch, folder, clock=self.clock, **variables)
        world = self.world
        world.cloudflare.limit(LIMIT - used, timedelta(seconds=WINDOW_S))
        self.headscale = SlowUpstream(world.headscale, self.clock, cost_s=BCRYPT_S, concurrency=CORES)
        self.cloudflare = SlowUpstream(world.cloudflare, self.clock, cost_s=CLOUDFLARE_S, concurrency=None)
        world.route = route_through((world.headscale, self.headscale), (world.cloudflare, self.cloudflare))
        self.hostnames = [f"app{number}.example.com" for number in range(pods)]
        self.exits = 0
        self.key_at: dict[str, float] = {}
        self.in_sync_at: dict[str, float] = {}

    def run(self, for_s: float) -> None:
        """Run all pods for this time."""
        self.clock.run(partial(self._pod, hostname, for_s) for hostname in self.hostnames)

    def _pod(self, hostname: str, until_s: float) -> None:
        world, clock = self.world, self.clock
        while True:
            try:
                world.cleanup(TS_HOSTNAME=hostname).run()
                break
            except TransientError:
                self.exits += 1
                clock.sleep(10.0)
        self.key_at[hostname] = clock.elapsed_s
        # The tailscale container starts and registers its node.
        clock.sleep(random.uniform(1.0, 4.0))
        node = world.headscale.register(key=world.key_file_of(hostname).read_text(), hostname=hostname)
        world.headscale.connect(node.id)
        watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
        while clock.elapsed_s < until_s:
            wait_s = watch.run_pass()
            if watch.state.records.in_sync:
                self.in_sync_at.setdefault(hostname, clock.elapsed_s)
            clock.sleep(max(wait_s, 0.001))

    @property
    def throttled(self) -> int:
        """The number of requests that Cloudflare rejected with 429."""
        return sum(1 for request in self.world.cloudflare.requests if request.status == 429)

    def report(self, what: str) -> None:
        """Add the figures to the summary of the test run."""
        requested_at = self.cloudflare.requested_at
        add_measurement(
            f"fleet: {what}: {len(self.hostnames)} concurrent pods: last key after {max(self.key_at.values()):.0f} s, "
            f"last record after {max(self.in_sync_at.values()):.0f} s; exits: {self.exits}; "
            f"requests to Cloudflare: {len(requested_at)}, at most {busiest(requested_at, WINDOW_S)} in 5 min and "
            f"{busiest(requested_at, 1)} in 1 s, {self.throttled} rejected; "
            f"requests to Headscale: {len(self.headscale.requested_at)}, {self.headscale.timed_out} timed out"
        )


@pods_at_once
def test_pods_that_start_together_stay_below_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pods: int
) -> None:
    """The zone id is set, and all other settings have their defaults."""
    start = SimultaneousStart(monkeypatch, tmp_path, pods, used=0)
    start.run(7 * MINUTE_S)
    start.report("zone id set")
    assert len(start.key_at) == len(start.in_sync_at) == pods
    assert (start.exits, start.throttled) == (0, 0)
    assert max(start.in_sync_at.values()) < 2 * MINUTE_S
    # One read in cleanup. In dns-watch a read, the zone's name, a create and another read.
    assert busiest(start.cloudflare.requested_at, WINDOW_S) <= pods * 5


@pods_at_once
def test_pods_that_start_together_wait_when_rate_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pods: int
) -> None:
    """After a 429, the pods honor Retry-After with jitter, and all get a key and a record without an exit."""
    # Two requests per pod are left: too few for a start.
    start = SimultaneousStart(
        monkeypatch, tmp_path, pods, used=LIMIT - 2 * pods, CLOUDFLARE_ZONE_ID="", POLL_INTERVAL="5m"
    )
    start.run(15 * MINUTE_S)
    start.report("zone id looked up, two thirds of the limit used")
    assert start.throttled > 0
    assert len(start.key_at) == len(start.in_sync_at) == pods
    assert start.exits == 0
    # Each pod is rejected at most once in cleanup and twice in dns-watch, because it honors Retry-After.
    assert start.throttled <= pods * 3
    after = [at for at in start.cloudflare.requested_at if at > WINDOW_S + 10]
    # Without jitter, all of them would return in the same second.
    assert busiest(after, 1) <= pods // 3


@pytest.mark.parametrize("sidecars", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_sidecars_in_steady_state_leave_room_in_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sidecars: int
) -> None:
    """Of a thousand sidecars, a sixth of the limit is left for other users of the account, whatever the jitter."""
    clock = Clock()
    cloudflare = CloudflareSimulator(now=clock.true_now, plan="pro")
    slow = SlowUpstream(cloudflare, clock, cost_s=0.0, concurrency=None)
    worlds = []
    watches: list[tuple[float, int, DnsWatch]] = []
    # Fifty nodes per zone and tailnet: lists of a thousand nodes take twenty times as long and test nothing more.
    for group in range(sidecars // 50):
        (tmp_path / str(group)).mkdir()
        world = FleetWorld(monkeypatch, tmp_path / str(group), clock=clock, POLL_INTERVAL="5m")
        world.share(cloudflare, f"zone{group}.example.com")
        world.route = route_through(
            (world.headscale, SlowUpstream(world.headscale, clock, cost_s=0.0, concurrency=None)), (cloudflare, slow)
        )
        worlds.append(world)
        for number in range(50):
            hostname = f"app{number}.zone{group}.example.com"
            node = world.headscale.add_node(hostname, user=USER)
            world.add_record(node.address, name=hostname, ttl=60, comment="tailscale-lifecycle/1 default")
            watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
            watches.append((random.uniform(0, WINDOW_S), len(watches), watch))
    heapify(watches)
    until = 4 * WINDOW_S
    while watches[0][0] < until:
        at, number, watch = heappop(watches)
        clock.sleep(max(0.0, at - clock.elapsed_s))
        heappush(watches, (clock.elapsed_s + max(watch.run_pass(), 0.001), number, watch))
    steady = [at for at in slow.requested_at if at >= WINDOW_S]
    most, mean = busiest(steady, WINDOW_S), len(steady) / 3
    add_measurement(
        f"fleet: {sidecars} sidecars in steady state, VERIFY_INTERVAL=5m: {mean:.0f} requests to Cloudflare in 5 min, "
        f"at most {most}, which leaves {LIMIT - most} of {LIMIT}; at most {busiest(steady, 1)} in 1 s; no writes"
    )
    assert all(watch.status.ready for _, _, watch in watches)
    assert not cloudflare.writes
    # The jitter only lengthens an interval, so no pod reads twice in five minutes.
    assert most <= sidecars
    assert mean < 0.92 * sidecars
    assert busiest(steady, 1) < 20


def test_a_fleet_in_steady_state_leaves_headscale_idle() -> None:
    """With default settings, a thousand pods use less than 0.3 cores."""
    steady = steady_state(1000)
    add_measurement(f"fleet: {steady}")
    assert steady.ready
    assert steady.cores < 0.3
