"""Many pods of different workloads, a Cloudflare account with a rate limit, and a slow Headscale."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lifecycle.runtime.deadline import remaining_s
from lifecycle.settings.models import Command
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import ZONE, Clock, World

# Headscale compares the API key with bcrypt for each request.
BCRYPT_S = 0.06
# The number of concurrent comparisons.
CORES = 2

CLOUDFLARE_S = 0.1

# Cloudflare's limit, shared by all tokens of a user and the dashboard.
LIMIT = 1200
WINDOW_S = 300.0


class FleetWorld(World):
    """A world in which each command belongs to a different workload."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, clock: Clock, **variables: str) -> None:
        super().__init__(monkeypatch, folder, clock=clock)
        self.environment |= variables
        self._folder = folder
        self._loaded: dict[type[Any], Any] = {}
        self.headscale.keep_bodies = False
        self.share(CloudflareSimulator(now=clock.true_now, plan="pro"), ZONE)

    def share(self, cloudflare: CloudflareSimulator, zone: str) -> None:
        """Use a separate zone in this account."""
        cloudflare.keep_bodies = False
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone(zone)
        self.environment |= {
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": zone,
        }

    def settings(self, command: type[Command], **variables: str) -> Command:
        """Return the settings of one workload: those of the fleet, and TS_HOSTNAME."""
        hostname = variables.pop("TS_HOSTNAME")
        if command not in self._loaded:
            self._loaded[command] = super().settings(command, TS_HOSTNAME=hostname, **variables)
        settings: Command = self._loaded[command].model_copy(
            update={"ts_hostname": hostname, "authkey_output_path": self.key_file_of(hostname)}
        )
        return settings

    def key_file_of(self, hostname: str) -> Path:
        """Return the key file of one workload."""
        folder = self._folder / hostname
        folder.mkdir(exist_ok=True)
        return folder / "authkey"


class SlowUpstream:
    """An upstream with limited concurrency that records the time of each request.

    Args:
        cost_s: duration of each request. If it exceeds the time-out of the client, the response is lost.
        concurrency: number of concurrent requests; None = unlimited.
    """

    def __init__(self, upstream: Upstream, clock: Clock, *, cost_s: float, concurrency: int | None) -> None:
        self._upstream = upstream
        self._clock = clock
        self._cost_s = cost_s
        self._free_at = [0.0] * concurrency if concurrency else None
        self.requested_at: list[float] = []
        self.timed_out = 0

    def __call__(self, request: Request) -> Response:
        requested_at = self._clock.elapsed_s
        self.requested_at.append(requested_at)
        done_at = requested_at + self._cost_s
        if self._free_at is not None and "authorization" in request.headers:
            worker = min(range(len(self._free_at)), key=self._free_at.__getitem__)
            done_at = max(requested_at, self._free_at[worker]) + self._cost_s
            self._free_at[worker] = done_at
        # The clock of the real client is the real one.
        timeout_s = round(remaining_s())
        self._clock.sleep(min(done_at - requested_at, timeout_s))
        response = self._upstream.handle(request)
        if done_at - requested_at > timeout_s:
            self.timed_out += 1
            raise httpx.ReadTimeout("The read operation timed out")
        return response


def busiest(times: Iterable[float], window_s: float) -> int:
    """Return the maximum number of times within any window of this length."""
    ordered = sorted(times)
    most = first = 0
    for number, at in enumerate(ordered):
        while at - ordered[first] >= window_s:
            first += 1
        most = max(most, number - first + 1)
    return most


def route_through(*slow: tuple[Upstream, Handler]) -> Any:
    """Return a function that replaces each upstream by its slow handler."""
    by_upstream = {id(upstream): handler for upstream, handler in slow}

    def between(upstream: Upstream) -> Handler:
        return by_upstream[id(upstream)]

    return between
