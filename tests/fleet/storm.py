"""Simulate a storm: all pods of a cluster start at the same time, and Headscale has one CPU core.

Headscale needs most of its CPU time to check the API key of each request.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.builders import OUR_COMMENT
from tests.fleet.cooperative_clock import CooperativeClock
from tests.fleet.fleet import BCRYPT_S, CLOUDFLARE_S, Cores, FleetWorld, SlowUpstream, route_through
from tests.world import MIN_WAIT_S, USER

# The pods are divided into tailnets of this size. In one large tailnet, the lists of nodes would be longer, which would
# only make the test slower.
PODS_PER_TAILNET = 50


@dataclass(slots=True)
class StormResult:
    """The result of a storm.

    Attributes:
        last_key_s: when the last pod had its pre-auth key, on the simulated clock.
        last_record_s: when the last record was published, on the simulated clock.
        key_checks: the number of API key checks of Headscale, until the last record was published.
        wasted: the number of these checks after which the client did not receive the response.
        exits: how often a container exited with an error.
        min_cpu_s: the CPU time of the API key checks, until the last record is published, if no request is repeated.
    """

    pods: int
    last_key_s: float = 0.0
    last_record_s: float = 0.0
    key_checks: int = 0
    wasted: int = 0
    exits: int = 0
    min_cpu_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.pods} pods at the same time, one core: last pre-auth key after {self.last_key_s:.0f} s, last "
            f"record after {self.last_record_s:.0f} s (at least {self.min_cpu_s:.0f} s of CPU time are needed), "
            f"{self.wasted} of {self.key_checks} API key checks wasted, {self.exits} container exits"
        )


def storm(pods: int, *, key_check_s: float = BCRYPT_S) -> StormResult:
    """Start pods in the same second. For each pod, there are a node and a record of its predecessor.

    Args:
        pods: the number of pods.
        key_check_s: the CPU time of one API key check. A test is faster with fewer pods and longer checks.
    """
    result = _run(pods, key_check_s)
    result.min_cpu_s = pods * _run(1, key_check_s).key_checks * key_check_s
    return result


def _run(pods: int, key_check_s: float) -> StormResult:
    clock = CooperativeClock()
    cores = Cores(clock, count=1, key_check_s=key_check_s)
    result = StormResult(pods)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        programs = []
        for first in range(0, pods, PODS_PER_TAILNET):
            path = Path(folder) / str(first)
            path.mkdir()
            world = FleetWorld(patch, path, clock=clock, POLL_INTERVAL="5m")
            headscale = SlowUpstream(world.headscale, clock, cores=cores)
            cloudflare = SlowUpstream(world.cloudflare, clock, duration_s=CLOUDFLARE_S)
            world.route = route_through((world.headscale, headscale), (world.cloudflare, cloudflare))
            for number in range(first, min(first + PODS_PER_TAILNET, pods)):
                hostname = f"app{number}.example.com"
                old = world.headscale.add_node(hostname, user=USER, online=False)
                world.add_record(old.address, name=hostname, ttl=60, comment=OUR_COMMENT)
                programs.append(partial(_run_pod, world, hostname, result, cores))
        clock.run(programs)
    return result


def _run_pod(world: FleetWorld, hostname: str, result: StormResult, cores: Cores) -> None:
    pod = world.start_pod(hostname)
    result.exits += pod.exits
    result.last_key_s = max(result.last_key_s, pod.key_created_s)
    is_published = False
    while not is_published:
        wait_s = pod.watch.run_pass()
        is_published = pod.watch.state.records.in_sync
        if is_published:
            result.last_record_s = world.clock.elapsed_s
            result.key_checks, result.wasted = cores.checks, cores.wasted
        world.clock.sleep(max(wait_s, MIN_WAIT_S))
