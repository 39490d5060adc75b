"""Simulate a fleet: many pods of different workloads.

The upstreams (Headscale and Cloudflare) need time to respond, and the Cloudflare account has a rate limit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import LifecycleError
from lifecycle.runtime.deadline import remaining_s
from lifecycle.settings.models import Command
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import ZONE, Clock, Interface, World, restart_backoff_s

# The CPU time of one request to Headscale. Most of it is the check of the API key against a bcrypt hash.
BCRYPT_S = 0.06
# The number of CPU cores of Headscale.
CORES = 2
# If Headscale needs longer than this for a response, it closes the connection without sending the response.
# Source: in Headscale, `WriteTimeout` of the `http.Server` is `types.HTTPTimeout`.
WRITE_TIMEOUT_S = 30.0

# The number of records that a zone of a paid Cloudflare plan can have.
PAID_PLAN_RECORDS = 3500
# The duration of one request to Cloudflare.
CLOUDFLARE_S = 0.1

# Cloudflare's rate limit: RATE_LIMIT requests in WINDOW_S. All API tokens of a user and the dashboard share this limit.
RATE_LIMIT = 1200
WINDOW_S = 300.0


class FleetWorld(World):
    """A tailnet and a zone for many workloads. TS_HOSTNAME is different for the commands of each workload."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, clock: Clock, **variables: str) -> None:
        super().__init__(monkeypatch, folder, clock=clock)
        self.environment |= variables
        self._folder = folder
        # The loaded settings of each command. Loading takes longer than most passes of `dns-watch`, so it is done once.
        self._loaded: dict[type[Any], Any] = {}
        self.headscale.keep_bodies = False
        self.use_account(CloudflareSimulator(now=clock.true_now, quota=PAID_PLAN_RECORDS), ZONE)

    def use_account(self, cloudflare: CloudflareSimulator, zone: str) -> None:
        """Create a zone in this Cloudflare account, and use it for the records of all workloads."""
        cloudflare.keep_bodies = False
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone(zone)
        self.environment |= {
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": zone,
        }

    def settings(self, command: type[Command], **variables: str) -> Command:
        """Return the settings of a command of one workload."""
        hostname = variables.pop("TS_HOSTNAME")
        if command not in self._loaded:
            self._loaded[command] = super().settings(command, TS_HOSTNAME=hostname, **variables)
        settings: Command = self._loaded[command].model_copy(
            update={"ts_hostname": hostname, "authkey_output_path": self.key_file_of(hostname)}
        )
        return settings

    def key_file_of(self, hostname: str) -> Path:
        """Return the path of the key file of one workload."""
        folder = self._folder / hostname
        folder.mkdir(exist_ok=True)
        return folder / "authkey"

    def start_pod(self, hostname: str) -> StartedPod:
        """Run `cleanup` until it succeeds, register the pod's node, and create the object that runs `dns-watch`."""
        exits = 0
        while True:
            try:
                self.cleanup(TS_HOSTNAME=hostname).run()
                break
            except LifecycleError:
                exits += 1
                self.clock.sleep(restart_backoff_s(exits))
        key_created_s = self.clock.elapsed_s
        # The tailscale container needs one to four seconds to start.
        self.clock.sleep(random.uniform(1.0, 4.0))
        node = self.headscale.register(key=self.key_file_of(hostname).read_text(), hostname=hostname)
        self.headscale.connect(node.id)
        watch = self.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
        return StartedPod(watch, key_created_s, exits)


@dataclass(frozen=True, slots=True)
class StartedPod:
    """A pod whose node is registered.

    Attributes:
        watch: runs the passes of `dns-watch`.
        key_created_s: when `cleanup` had created the pre-auth key, on the simulated clock.
        exits: how often `cleanup` failed before it succeeded.
    """

    watch: DnsWatch
    key_created_s: float
    exits: int


class Cores:
    """The CPU cores of Headscale, which check the API keys in the order of the requests.

    A key is checked even if the client does not wait for the response any more.

    Args:
        count: the number of cores.
        key_check_s: the CPU time of one check of an API key.

    Attributes:
        checks: the number of these checks.
        wasted: the number of these checks after which the client did not receive the response.
    """

    def __init__(self, clock: Clock, *, count: int = CORES, key_check_s: float = BCRYPT_S) -> None:
        self._clock = clock
        self._key_check_s = key_check_s
        # For each core, when it will have finished all key checks that are scheduled on it.
        self._free_s = [0.0] * count
        self.checks = 0
        self.wasted = 0

    def check_key(self) -> float:
        """Schedule a key check, and return the seconds until it is finished."""
        now_s = self._clock.elapsed_s
        core = min(range(len(self._free_s)), key=self._free_s.__getitem__)
        self._free_s[core] = max(now_s, self._free_s[core]) + self._key_check_s
        self.checks += 1
        return self._free_s[core] - now_s


class SlowUpstream:
    """A handler that delays the requests to a simulated upstream on the simulated clock.

    Args:
        duration_s: the duration of a request without an API key, or of any request if `cores` is None.
        cores: the cores that check the API keys.

    Attributes:
        request_times_s: when each request was sent, on the simulated clock.
    """

    def __init__(
        self, upstream: Upstream, clock: Clock, *, duration_s: float = 0.0, cores: Cores | None = None
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._duration_s = duration_s
        self._cores = cores
        self.request_times_s: list[float] = []

    def __call__(self, request: Request) -> Response:
        """Respond after the duration of the request, or raise the client's error if one side times out before that."""
        self.request_times_s.append(self._clock.elapsed_s)
        duration_s = self._duration_s
        if self._cores is not None and "authorization" in request.headers:
            duration_s = self._cores.check_key()
        # The client measures its time-out with the real clock, on which almost no time has passed. So the remaining
        # time, rounded, is the whole time-out.
        timeout_s = round(remaining_s())
        self._clock.sleep(min(duration_s, timeout_s))
        response = self._upstream.handle(request)
        if self._cores is not None and duration_s > min(timeout_s, WRITE_TIMEOUT_S):
            self._cores.wasted += 1
            if duration_s > timeout_s:
                raise httpx.ReadTimeout("The read operation timed out")
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return response


def max_per_window(times_s: Iterable[float], window_s: float) -> int:
    """Return the largest number of these points in time within any window of this length."""
    ordered = sorted(times_s)
    most = first = 0
    for number, time_s in enumerate(ordered):
        while time_s - ordered[first] >= window_s:
            first += 1
        most = max(most, number - first + 1)
    return most


def route_through(*handlers: tuple[Upstream, Handler]) -> Callable[[Upstream], Handler]:
    """Return a function for `World.route`, which returns the handler that is paired with an upstream."""
    by_upstream = {id(upstream): handler for upstream, handler in handlers}
    return lambda upstream: by_upstream[id(upstream)]
