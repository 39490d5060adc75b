"""A storm: all pods of a cluster start at the same time, and Headscale has one core to check their API keys."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from lifecycle.runtime.deadline import remaining_s
from tests.builders import MARK
from tests.fleet.cooperative_clock import CooperativeClock
from tests.fleet.fleet import BCRYPT_S, CLOUDFLARE_S, FleetWorld, SlowUpstream, route_through
from tests.simulators.messages import Request, Response
from tests.simulators.upstream import Upstream
from tests.world import MIN_WAIT_S, USER

# Headscale closes the connection instead of sending a response that takes longer.
# Source: in Headscale, `WriteTimeout` of the `http.Server` is `types.HTTPTimeout`.
WRITE_TIMEOUT_S = 30.0

# More pods in a tailnet make only the lists of nodes longer, and the test slower.
PODS_PER_TAILNET = 50


@dataclass(slots=True)
class Storm:
    """The result of a storm.

    Attributes:
        last_key_s: when the last pod had its key.
        last_record_s: when the last record was published.
        key_checks: the number of API keys that the server checked, until the last record.
        wasted: the number of key checks whose response was lost.
        exits: how often a container exited.
        limit_s: the server's own limit, which is the time that its core needs for the pods one after another.
    """

    pods: int
    last_key_s: float = 0.0
    last_record_s: float = 0.0
    key_checks: int = 0
    wasted: int = 0
    exits: int = 0
    limit_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.pods} pods at the same time, one core: last key after {self.last_key_s:.0f} s (the server's limit: "
            f"{self.limit_s:.0f} s), last record after {self.last_record_s:.0f} s, {self.wasted} of {self.key_checks} "
            f"key checks wasted, {self.exits} container exits"
        )


class OneCore:
    """A CPU core that checks one API key after another, even for clients that have timed out."""

    def __init__(self, clock: CooperativeClock, key_check_s: float) -> None:
        self.clock = clock
        self._key_check_s = key_check_s
        self._free_s = 0.0
        self.checks = 0
        self.wasted = 0

    def __call__(self, upstream: Upstream, request: Request) -> Response:
        """Respond when the core has checked the key, unless the client or the server times out before."""
        started_s = self.clock.elapsed_s
        duration_s = 0.001
        if "authorization" in request.headers:
            self.checks += 1
            self._free_s = max(started_s, self._free_s) + self._key_check_s
            duration_s = self._free_s - started_s
        # The client measures its time-out with the real clock, on which hardly any time passes.
        timeout_s = round(remaining_s())
        self.clock.sleep(min(duration_s, timeout_s))
        response = upstream.handle(request)
        if duration_s > min(timeout_s, WRITE_TIMEOUT_S):
            self.wasted += 1
            if duration_s > timeout_s:
                raise httpx.ReadTimeout("The read operation timed out")
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return response


def storm(pods: int, *, key_check_s: float = BCRYPT_S) -> Storm:
    """Start pods in the same second, each with a node and a record that its predecessor left.

    Args:
        key_check_s: the CPU time of one key check. A test is faster with fewer pods and a longer key check.
    """
    result = _run(pods, key_check_s)
    result.limit_s = pods * _run(1, key_check_s).key_checks * key_check_s
    return result


def _run(pods: int, key_check_s: float) -> Storm:
    clock = CooperativeClock()
    core = OneCore(clock, key_check_s)
    result = Storm(pods)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        programs = []
        for first in range(0, pods, PODS_PER_TAILNET):
            path = Path(folder) / str(first)
            path.mkdir()
            world = FleetWorld(patch, path, clock=clock, POLL_INTERVAL="5m")
            cloudflare = SlowUpstream(world.cloudflare, clock, cost_s=CLOUDFLARE_S, concurrency=None)
            world.route = route_through(
                (world.headscale, partial(core, world.headscale)), (world.cloudflare, cloudflare)
            )
            for number in range(first, min(first + PODS_PER_TAILNET, pods)):
                hostname = f"app{number}.example.com"
                old = world.headscale.add_node(hostname, user=USER, online=False)
                world.add_record(old.address, name=hostname, ttl=60, comment=MARK)
                programs.append(partial(_run_pod, world, hostname, result, core))
        clock.run(programs)
    return result


def _run_pod(world: FleetWorld, hostname: str, result: Storm, core: OneCore) -> None:
    clock = core.clock
    pod = world.start_pod(hostname)
    result.exits += pod.exits
    result.last_key_s = max(result.last_key_s, pod.key_created_s)
    is_published = False
    while not is_published:
        wait_s = pod.watch.run_pass()
        is_published = pod.watch.state.records.in_sync
        if is_published:
            result.last_record_s = clock.elapsed_s
            result.key_checks, result.wasted = core.checks, core.wasted
        clock.sleep(max(wait_s, MIN_WAIT_S))
