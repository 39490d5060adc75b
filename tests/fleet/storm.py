"""All pods of a cluster start at once, and one core of Headscale checks the API key of each request."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from lifecycle.domain.errors import LifecycleError
from lifecycle.runtime.deadline import remaining_s
from tests.builders import MARK
from tests.fleet.cooperative_clock import CooperativeClock
from tests.fleet.fleet import BCRYPT_S, CLOUDFLARE_S, FleetWorld, SlowUpstream, route_through
from tests.simulators.messages import Request, Response
from tests.simulators.upstream import Upstream
from tests.world import USER, Interface

# Headscale's HTTP server loses a response that takes longer.
# Source: `WriteTimeout` of its `http.Server`, which is `types.HTTPTimeout`.
WRITE_TIMEOUT_S = 30.0

# The kubelet's backoff before it restarts a container.
RESTART_S = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)

# Pods per tailnet: longer lists of nodes only take longer.
TAILNET = 50


@dataclass(slots=True)
class Storm:
    """What happened.

    Attributes:
        last_key_s: when the last pod had its key.
        last_record_s: when the last record was published.
        key_checks: what the pods' requests cost the server, until the last record.
        wasted: those whose response was lost.
        exits: of containers.
        limit_s: the server's own limit: how long it would take for the pods one after another.
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
            f"{self.pods} pods at once, one core: last key after {self.last_key_s:.0f} s (the server's limit: "
            f"{self.limit_s:.0f} s), last record after {self.last_record_s:.0f} s, {self.wasted} of {self.key_checks} "
            f"key checks wasted, {self.exits} container exits"
        )


class OneCore:
    """A core that checks one API key after another, in the order of the requests, even for clients that gave up."""

    def __init__(self, clock: CooperativeClock, key_check_s: float) -> None:
        self.clock = clock
        self._key_check_s = key_check_s
        self.free_at = 0.0
        self.checks = 0
        self.wasted = 0

    def __call__(self, upstream: Upstream, request: Request) -> Response:
        """Respond when the core has checked the key, unless the client or the server gives up before."""
        started_at = self.clock.elapsed_s
        duration_s = 0.001
        if "authorization" in request.headers:
            self.checks += 1
            self.free_at = max(started_at, self.free_at) + self._key_check_s
            duration_s = self.free_at - started_at
        # The time-out of the real client; its clock is the real one.
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
        key_check_s: of one request. Half of the pods at twice the cost show the same in half of the time.
    """
    seen = _run(pods, key_check_s)
    seen.limit_s = pods * _run(1, key_check_s).key_checks * key_check_s
    return seen


def _run(pods: int, key_check_s: float) -> Storm:
    clock = CooperativeClock()
    core = OneCore(clock, key_check_s)
    seen = Storm(pods)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        programs = []
        for first in range(0, pods, TAILNET):
            path = Path(folder) / str(first)
            path.mkdir()
            world = FleetWorld(patch, path, clock=clock, POLL_INTERVAL="5m")
            cloudflare = SlowUpstream(world.cloudflare, clock, cost_s=CLOUDFLARE_S, concurrency=None)
            world.route = route_through(
                (world.headscale, partial(core, world.headscale)), (world.cloudflare, cloudflare)
            )
            for number in range(first, min(first + TAILNET, pods)):
                hostname = f"app{number}.example.com"
                old = world.headscale.add_node(hostname, user=USER, online=False)
                world.add_record(old.address, name=hostname, ttl=60, comment=MARK)
                programs.append(partial(_run_pod, world, hostname, seen, core))
        clock.run(programs)
    return seen


def _run_pod(world: FleetWorld, hostname: str, seen: Storm, core: OneCore) -> None:
    clock = core.clock
    exits = 0
    while True:
        try:
            world.cleanup(TS_HOSTNAME=hostname).run()
            break
        except LifecycleError:
            clock.sleep(RESTART_S[min(exits, len(RESTART_S) - 1)])
            exits += 1
    seen.exits += exits
    seen.last_key_s = clock.elapsed_s
    # The tailscale container starts and registers its node.
    clock.sleep(random.uniform(1.0, 4.0))
    node = world.headscale.register(key=world.key_file_of(hostname).read_text(), hostname=hostname)
    world.headscale.connect(node.id)
    watch = world.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
    published = False
    while not published:
        wait_s = watch.run_pass()
        published = watch.state.records.in_sync
        if published:
            seen.last_record_s = clock.elapsed_s
            seen.key_checks, seen.wasted = core.checks, core.wasted
        clock.sleep(max(wait_s, 0.001))
