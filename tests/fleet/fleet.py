"""A fleet: many pods of different workloads, with slow upstreams and the rate limit of a Cloudflare account."""

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

# The CPU time of one request to Headscale, which compares the API key with a bcrypt hash.
BCRYPT_S = 0.06
# The CPU cores of Headscale.
CORES = 2

# The duration of one request to Cloudflare.
CLOUDFLARE_S = 0.1

# Cloudflare's rate limit: requests per window. All tokens of a user and the dashboard share it.
RATE_LIMIT = 1200
WINDOW_S = 300.0


class FleetWorld(World):
    """A tailnet and a zone for many workloads. TS_HOSTNAME selects the workload of a command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, clock: Clock, **variables: str) -> None:
        super().__init__(monkeypatch, folder, clock=clock)
        self.environment |= variables
        self._folder = folder
        # Loading settings takes longer than most passes, so each command does it only once.
        self._loaded: dict[type[Any], Any] = {}
        self.headscale.keep_bodies = False
        self.use_account(CloudflareSimulator(now=clock.true_now, plan="pro"), ZONE)

    def use_account(self, cloudflare: CloudflareSimulator, zone: str) -> None:
        """Use a new zone in this Cloudflare account."""
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
        """Run `cleanup` until it succeeds, register the node of the pod, and create its `dns-watch`."""
        exits = 0
        while True:
            try:
                self.cleanup(TS_HOSTNAME=hostname).run()
                break
            except LifecycleError:
                exits += 1
                self.clock.sleep(restart_backoff_s(exits))
        key_created_s = self.clock.elapsed_s
        # The start of the tailscale container takes this long.
        self.clock.sleep(random.uniform(1.0, 4.0))
        node = self.headscale.register(key=self.key_file_of(hostname).read_text(), hostname=hostname)
        self.headscale.connect(node.id)
        watch = self.watch(Interface(*node.addresses), TS_HOSTNAME=hostname)
        return StartedPod(watch, key_created_s, exits)


@dataclass(frozen=True, slots=True)
class StartedPod:
    """A pod whose node is registered.

    Attributes:
        key_created_s: when `cleanup` had created the key, on the simulated clock.
        exits: how often `cleanup` failed before.
    """

    watch: DnsWatch
    key_created_s: float
    exits: int


class SlowUpstream:
    """An upstream that needs time for each request.

    Args:
        cost_s: the time for a request. The client times out if the response takes longer than its limit.
        concurrency: how many requests with credentials are executed at the same time; None = all.

    Attributes:
        request_times_s: the time of each request.
        timed_out: the number of requests for which the client timed out.
    """

    def __init__(self, upstream: Upstream, clock: Clock, *, cost_s: float, concurrency: int | None) -> None:
        self._upstream = upstream
        self._clock = clock
        self._cost_s = cost_s
        # When each worker has finished its last request.
        self._workers_free_s = [0.0] * concurrency if concurrency else None
        self.request_times_s: list[float] = []
        self.timed_out = 0

    def __call__(self, request: Request) -> Response:
        requested_s = self._clock.elapsed_s
        self.request_times_s.append(requested_s)
        duration_s = self._cost_s
        if self._workers_free_s is not None and "authorization" in request.headers:
            worker = min(range(len(self._workers_free_s)), key=self._workers_free_s.__getitem__)
            self._workers_free_s[worker] = max(requested_s, self._workers_free_s[worker]) + self._cost_s
            duration_s = self._workers_free_s[worker] - requested_s
        # The client measures its time-out with the real clock, on which hardly any time passes.
        timeout_s = round(remaining_s())
        self._clock.sleep(min(duration_s, timeout_s))
        response = self._upstream.handle(request)
        if duration_s > timeout_s:
            self.timed_out += 1
            raise httpx.ReadTimeout("The read operation timed out")
        return response


def max_per_window(times_s: Iterable[float], window_s: float) -> int:
    """Return the maximum number of times within any window of this length."""
    ordered = sorted(times_s)
    most = first = 0
    for number, time_s in enumerate(ordered):
        while time_s - ordered[first] >= window_s:
            first += 1
        most = max(most, number - first + 1)
    return most


def route_through(*handlers: tuple[Upstream, Handler]) -> Callable[[Upstream], Handler]:
    """Return a value for `World.route` that replaces each upstream by the given handler."""
    by_upstream = {id(upstream): handler for upstream, handler in handlers}
    return lambda upstream: by_upstream[id(upstream)]
