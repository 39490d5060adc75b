"""Hundreds at once: everybody gets a key and a record, nobody exits, and the account's limit has room for a person."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import TransientError
from tests.fleet.fleet import BCRYPT_S, CLOUDFLARE_S, CORES, LIMIT, WINDOW_S, Busy, FleetWorld, busiest, in_front
from tests.fleet.turns import Turns
from tests.simulators.cloudflare import CloudflareSimulator
from tests.tally import figure
from tests.world import USER, Clock, Interface

MINUTE_S = 60.0


class Start:
    """Pods that all start in the same second.

    Args:
        used: how much of the account's budget is gone already: a person at the dashboard.
        variables: settings of all of them.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, pods: int, *, used: int, **variables: str
    ) -> None:
        self.clock = Turns()
        self.world = FleetWorld(monkeypatch, folder, clock=self.clock, **variables)
        world = self.world
        world.cloudflare.limit(LIMIT - used, timedelta(seconds=WINDOW_S))
        self.headscale = Busy(world.headscale, self.clock, cost_s=BCRYPT_S, at_once=CORES)
        self.cloudflare = Busy(world.cloudflare, self.clock, cost_s=CLOUDFLARE_S, at_once=None)
        world.between = in_front((world.headscale, self.headscale), (world.cloudflare, self.cloudflare))
        self.hostnames = [f"app{number}.example.com" for number in range(pods)]
        self.exits = 0
        self.key_at: dict[str, float] = {}
        self.right_at: dict[str, float] = {}

    def run(self, for_s: float) -> None:
        """Let all of them live for so long."""
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
        # The tailscale container starts, and registers.
        clock.sleep(random.uniform(1.0, 4.0))
        node = world.headscale.register(key=world.key_file_of(hostname).read_text(), hostname=hostname)
        world.headscale.connect(node.id)
        watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
        while clock.elapsed_s < until_s:
            wait_s = watch.run_pass()
            if watch.status.view.in_sync:
                self.right_at.setdefault(hostname, clock.elapsed_s)
            clock.sleep(max(wait_s, 0.001))

    @property
    def throttled(self) -> int:
        """Requests that Cloudflare refused as too many."""
        return sum(1 for request in self.world.cloudflare.requests if request.status == 429)

    def tell(self, what: str) -> None:
        """Leave the figures for the end of the run."""
        asked_at = self.cloudflare.asked_at
        figure(
            f"fleet: {what}: {len(self.hostnames)} pods at once: last key after {max(self.key_at.values()):.0f} s, "
            f"last record after {max(self.right_at.values()):.0f} s; exits: {self.exits}; "
            f"Cloudflare was asked {len(asked_at)} times, at most {busiest(asked_at, WINDOW_S)} in 5 min and "
            f"{busiest(asked_at, 1)} in 1 s, and refused {self.throttled}; "
            f"Headscale was asked {len(self.headscale.asked_at)} times, and too slow {self.headscale.timed_out} times"
        )


def test_two_hundred_pods_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the zone's id set and all else as it is by default, they stay below the limit from the first second on."""
    start = Start(monkeypatch, tmp_path, 200, used=0)
    start.run(7 * MINUTE_S)
    start.tell("zone id set")
    assert len(start.key_at) == len(start.right_at) == 200
    assert (start.exits, start.throttled) == (0, 0)
    assert max(start.right_at.values()) < 2 * MINUTE_S
    # A read in cleanup, a read and a create in dns-watch, a read soon after.
    assert busiest(start.cloudflare.asked_at, WINDOW_S) <= 200 * 4


def test_two_hundred_pods_at_once_meet_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused as too many, they wait as long as they are told, spread out, and all get there; nobody exits."""
    start = Start(monkeypatch, tmp_path, 200, used=800, CLOUDFLARE_ZONE_ID="", POLL_INTERVAL="5m")
    start.run(15 * MINUTE_S)
    start.tell("zone id looked up, two thirds of the budget used up")
    assert start.throttled > 0
    assert len(start.key_at) == len(start.right_at) == 200
    assert start.exits == 0
    # Who was told to wait waits: none is refused more often than once in cleanup and twice in dns-watch.
    assert start.throttled <= 200 * 3
    after = [at for at in start.cloudflare.asked_at if at > WINDOW_S + 10]
    assert busiest(after, 1) <= 20


def test_a_thousand_sidecars_in_steady_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They leave a sixth of the account's limit to a person, whatever the chance of their jitter."""
    clock = Clock()
    cloudflare = CloudflareSimulator(now=clock.true_now, plan="pro")
    busy = Busy(cloudflare, clock, cost_s=0.0, at_once=None)
    worlds = []
    watches: list[tuple[float, int, DnsWatch]] = []
    # Zones and tailnets of fifty each: a list of a thousand nodes says nothing more, and takes twenty times as long.
    for group in range(20):
        (tmp_path / str(group)).mkdir()
        world = FleetWorld(monkeypatch, tmp_path / str(group), clock=clock, POLL_INTERVAL="5m")
        world.share(cloudflare, f"zone{group}.example.com")
        world.between = in_front(
            (world.headscale, Busy(world.headscale, clock, cost_s=0.0, at_once=None)), (cloudflare, busy)
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
    steady = [at for at in busy.asked_at if at >= WINDOW_S]
    most, mean = busiest(steady, WINDOW_S), len(steady) / 3
    figure(
        f"fleet: 1000 sidecars in steady state, VERIFY_INTERVAL=5m: Cloudflare is asked {mean:.0f} times in 5 min, at "
        f"most {most}, which leaves {LIMIT - most} of {LIMIT}; at most {busiest(steady, 1)} in 1 s; no writes"
    )
    assert all(watch.status.ready for _, _, watch in watches)
    assert not cloudflare.writes
    # The jitter only lengthens an interval: nobody reads twice in five minutes.
    assert most <= 1000 <= LIMIT - 200
    assert mean < 920
    assert busiest(steady, 1) < 20
