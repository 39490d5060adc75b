"""Measure the load that many sidecars cause on Headscale while nothing changes (the steady state)."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.fleet import BCRYPT_S, Cores, FleetWorld, SlowUpstream, route_through
from tests.world import USER, Clock, Interface

HOUR_S = 3600.0
# How many of the pods are simulated. Pods do not interact, so their load is multiplied.
SIMULATED_PODS = 5


@dataclass(frozen=True, slots=True)
class Steady:
    """The load of many pods in their second hour, with default settings.

    Attributes:
        cores: how many CPU cores Headscale needs for the requests of all pods.
        interval_s: the longest interval between two polls of a pod.
        ready: True if all records are in sync.
    """

    pods: int
    cores: float
    interval_s: float
    ready: bool

    def __str__(self) -> str:
        polls = f"polls every {self.interval_s:.0f} s"
        return f"{self.pods} pods in steady state: {self.cores:.2f} cores of Headscale, {polls}"


def steady_state(pods: int) -> Steady:
    """Measure the load of this many pods in steady state."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        world = FleetWorld(patch, Path(folder), clock=clock)
        cores = Cores(clock)
        headscale = SlowUpstream(world.headscale, clock, cores=cores)
        world.route = route_through((world.headscale, headscale), (world.cloudflare, world.cloudflare.handle))
        nodes = [world.headscale.add_node(f"app{number}.example.com", user=USER) for number in range(pods)]
        watches = [
            world.watch(Interface(*node.addresses), TS_HOSTNAME=node.name)
            for node in random.sample(nodes, SIMULATED_PODS)
        ]
        world.run_together(*watches, seconds=HOUR_S)
        earlier_key_checks = cores.checks
        world.run_together(*watches, seconds=HOUR_S)
        key_checks = cores.checks - earlier_key_checks
        return Steady(
            pods,
            cores=key_checks * BCRYPT_S / HOUR_S * pods / SIMULATED_PODS,
            interval_s=max(watch.status.poll_interval_s for watch in watches),
            ready=all(watch.status.ready for watch in watches),
        )
