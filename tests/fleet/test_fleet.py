"""Test that hundreds of pods get keys and records, and stay within the rate limit of Cloudflare."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from tests.builders import OUR_COMMENT
from tests.fleet.cooperative_clock import CooperativeClock
from tests.fleet.fleet import (
    CLOUDFLARE_S,
    PAID_PLAN_RECORDS,
    RATE_LIMIT,
    WINDOW_S,
    Cores,
    FleetWorld,
    SlowUpstream,
    max_per_window,
    route_through,
)
from tests.fleet.steady import steady_state
from tests.simulators.cloudflare import CloudflareSimulator
from tests.tally import add_measurement
from tests.world import MIN_WAIT_S, USER, Clock, Interface

MINUTE_S = 60.0

# The full run of the tests adds 200 pods.
fleet_sizes = pytest.mark.parametrize("pods", [40, pytest.param(200, marks=pytest.mark.full)])


class SimultaneousStart:
    """Pods that start at the same time.

    Args:
        used: how many of the RATE_LIMIT requests other clients of Cloudflare, such as the dashboard, have already sent.
        variables: settings of all pods.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, pods: int, *, used: int, **variables: str
    ) -> None:
        self.clock = CooperativeClock()
        self.world = FleetWorld(monkeypatch, folder, clock=self.clock, **variables)
        world = self.world
        world.cloudflare.limit_rate(RATE_LIMIT - used, timedelta(seconds=WINDOW_S))
        self.cores = Cores(self.clock)
        self.headscale = SlowUpstream(world.headscale, self.clock, cores=self.cores)
        self.cloudflare = SlowUpstream(world.cloudflare, self.clock, duration_s=CLOUDFLARE_S)
        world.route = route_through((world.headscale, self.headscale), (world.cloudflare, self.cloudflare))
        self.hostnames = [f"app{number}.example.com" for number in range(pods)]
        # How often `cleanup` failed and was started again.
        self.exits = 0
        # When `cleanup` had created the pre-auth key of each pod, and when the record of each hostname was first in
        # sync, on the simulated clock.
        self.key_created_s: list[float] = []
        self.in_sync_s: dict[str, float] = {}

    def run(self, until_s: float) -> None:
        """Run all pods until the simulated clock shows this many seconds."""
        self.clock.run(partial(self._pod, hostname, until_s) for hostname in self.hostnames)

    def _pod(self, hostname: str, until_s: float) -> None:
        pod = self.world.start_pod(hostname)
        self.exits += pod.exits
        self.key_created_s.append(pod.key_created_s)
        while self.clock.elapsed_s < until_s:
            wait_s = pod.watch.run_pass()
            if pod.watch.state.records.in_sync:
                self.in_sync_s.setdefault(hostname, self.clock.elapsed_s)
            self.clock.sleep(max(wait_s, MIN_WAIT_S))

    @property
    def throttled(self) -> int:
        """The number of requests that Cloudflare rejected with 429."""
        return sum(1 for request in self.world.cloudflare.requests if request.status == 429)

    def report(self, title: str) -> None:
        """Add the measurements to the summary of the test run."""
        times_s = self.cloudflare.request_times_s
        add_measurement(
            f"fleet: {title}: {len(self.hostnames)} pods: last pre-auth key after {max(self.key_created_s):.0f} s, "
            f"last record after {max(self.in_sync_s.values()):.0f} s; exits: {self.exits}; "
            f"requests to Cloudflare: {len(times_s)}, at most {max_per_window(times_s, WINDOW_S)} in 5 min and "
            f"{max_per_window(times_s, 1)} in 1 s, {self.throttled} rejected; "
            f"requests to Headscale: {len(self.headscale.request_times_s)}, {self.cores.wasted} without a response"
        )


@fleet_sizes
def test_pods_that_start_together_stay_below_the_rate_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pods: int
) -> None:
    """The setting CLOUDFLARE_ZONE_ID is set, and all other settings have their defaults."""
    start = SimultaneousStart(monkeypatch, tmp_path, pods, used=0)
    start.run(7 * MINUTE_S)
    start.report("zone id set")
    assert len(start.key_created_s) == len(start.in_sync_s) == pods
    assert (start.exits, start.throttled) == (0, 0)
    assert max(start.in_sync_s.values()) < 2 * MINUTE_S
    # Each pod sends five requests: cleanup reads the records; dns-watch reads the records and the zone's name, creates
    # the record and reads the records again.
    assert max_per_window(start.cloudflare.request_times_s, WINDOW_S) <= pods * 5


@fleet_sizes
def test_pods_that_start_together_wait_when_rate_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pods: int
) -> None:
    """After a response 429, the pods wait as long as Retry-After says, plus jitter. No container exits."""
    # Cloudflare accepts only two more requests per pod, and each pod needs more than two. Rare polls save time.
    start = SimultaneousStart(
        monkeypatch, tmp_path, pods, used=RATE_LIMIT - 2 * pods, CLOUDFLARE_ZONE_ID="", POLL_INTERVAL="5m"
    )
    start.run(15 * MINUTE_S)
    start.report("zone id not set, two requests per pod left in the rate limit")
    assert start.throttled > 0
    assert len(start.key_created_s) == len(start.in_sync_s) == pods
    assert start.exits == 0
    # Because the pods wait, Cloudflare rejects at most one request of each cleanup and two of each dns-watch.
    assert start.throttled <= pods * 3
    # After WINDOW_S, Cloudflare accepts requests again. Without jitter, all pods would send one in the same second.
    after_limit_s = [time_s for time_s in start.cloudflare.request_times_s if time_s > WINDOW_S + 10]
    assert max_per_window(after_limit_s, 1) <= pods // 3


@pytest.mark.full
@pytest.mark.parametrize("sidecars", [100, 1000])
def test_sidecars_in_steady_state_stay_below_the_rate_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sidecars: int
) -> None:
    """With VERIFY_INTERVAL=5m, the default, a thousand sidecars need at most 1000 of the 1200 allowed requests."""
    clock = Clock()
    cloudflare = CloudflareSimulator(now=clock.true_now, quota=PAID_PLAN_RECORDS)
    slow = SlowUpstream(cloudflare, clock)
    # For each sidecar: when its next pass is due, its number (to sort equal times), and the sidecar.
    watches: list[tuple[float, int, DnsWatch]] = []
    # Each zone and tailnet has fifty nodes. With longer lists, the test would only take longer.
    for group in range(sidecars // 50):
        (tmp_path / str(group)).mkdir()
        world = FleetWorld(monkeypatch, tmp_path / str(group), clock=clock, POLL_INTERVAL="5m")
        world.use_account(cloudflare, f"zone{group}.example.com")
        world.route = route_through((world.headscale, world.headscale.handle), (cloudflare, slow))
        for number in range(50):
            hostname = f"app{number}.zone{group}.example.com"
            node = world.headscale.add_node(hostname, user=USER)
            world.add_record(node.address, name=hostname, ttl=60, comment=OUR_COMMENT)
            watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
            watches.append((random.uniform(0, WINDOW_S), len(watches), watch))
    heapify(watches)
    while watches[0][0] < 4 * WINDOW_S:
        due_s, number, watch = heappop(watches)
        clock.sleep(max(0.0, due_s - clock.elapsed_s))
        heappush(watches, (clock.elapsed_s + max(watch.run_pass(), MIN_WAIT_S), number, watch))
    # The first of the four windows does not count, because the first pass of each sidecar sends more requests.
    steady_times_s = [time_s for time_s in slow.request_times_s if time_s >= WINDOW_S]
    most, mean = max_per_window(steady_times_s, WINDOW_S), len(steady_times_s) / 3
    add_measurement(
        f"fleet: {sidecars} sidecars in steady state, VERIFY_INTERVAL=5m: {mean:.0f} requests to Cloudflare in 5 min, "
        f"at most {most}, which leaves {RATE_LIMIT - most} of {RATE_LIMIT}; "
        f"at most {max_per_window(steady_times_s, 1)} in 1 s; no writes"
    )
    assert all(watch.status.ready for _, _, watch in watches)
    assert not cloudflare.writes
    # Jitter makes each interval up to a quarter longer than five minutes, so there are fewer requests than sidecars.
    assert most <= sidecars
    assert mean < 0.92 * sidecars
    assert max_per_window(steady_times_s, 1) < 20


@pytest.mark.full
def test_headscale_needs_little_cpu_for_a_fleet_in_steady_state() -> None:
    """With default settings, a thousand pods use less than 0.3 cores of Headscale."""
    steady = steady_state(1000)
    add_measurement(f"fleet: {steady}")
    assert steady.ready
    assert steady.cores < 0.3
