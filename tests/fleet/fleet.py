"""Many pods of many services: one Cloudflare account with its limit, one Headscale that takes its time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lifecycle.settings.models import Command
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.messages import Handler, Request, Response
from tests.simulators.upstream import Upstream
from tests.world import ZONE, Clock, World

# What one request costs Headscale: a bcrypt comparison of the API key.
BCRYPT_S = 0.06
# How many it makes at once.
CORES = 2

CLOUDFLARE_S = 0.1
HTTP_TIMEOUT_S = 10.0

# Cloudflare's limit for all of a user's tokens, and of the dashboard.
LIMIT = 1200
WINDOW_S = 300.0


class FleetWorld(World):
    """A world whose commands each belong to another service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, clock: Clock, **variables: str) -> None:
        super().__init__(monkeypatch, folder, clock=clock)
        self.environment |= variables
        self._folder = folder
        self._loaded: dict[type[Any], Any] = {}
        self.headscale.keep_bodies = False
        self.share(CloudflareSimulator(now=clock.true_now, plan="pro"), ZONE)

    def share(self, cloudflare: CloudflareSimulator, zone: str) -> None:
        """Use this account, and a zone of its own in it."""
        cloudflare.keep_bodies = False
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone(zone)
        self.environment |= {
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": zone,
        }

    def settings(self, command: type[Command], **variables: str) -> Command:
        """One service's settings: those of the fleet, and TS_HOSTNAME."""
        hostname = variables.pop("TS_HOSTNAME")
        if command not in self._loaded:
            self._loaded[command] = super().settings(command, TS_HOSTNAME=hostname, **variables)
        settings: Command = self._loaded[command].model_copy(
            update={"ts_hostname": hostname, "authkey_output_path": self.key_file_of(hostname)}
        )
        return settings

    def key_file_of(self, hostname: str) -> Path:
        """Where a service's key goes."""
        folder = self._folder / hostname
        folder.mkdir(exist_ok=True)
        return folder / "authkey"


class Busy:
    """A service that answers so many at a time, and notes when it was asked.

    Args:
        cost_s: of each request; one that is not answered within HTTP_TIMEOUT is executed all the same.
        at_once: how many it works on at a time; None = any number.
    """

    def __init__(self, upstream: Upstream, clock: Clock, *, cost_s: float, at_once: int | None) -> None:
        self._upstream = upstream
        self._clock = clock
        self._cost_s = cost_s
        self._free_at = [0.0] * at_once if at_once else None
        self.asked_at: list[float] = []
        self.timed_out = 0

    def __call__(self, request: Request) -> Response:
        asked_at = self._clock.elapsed_s
        self.asked_at.append(asked_at)
        done_at = asked_at + self._cost_s
        if self._free_at is not None and "authorization" in request.headers:
            worker = min(range(len(self._free_at)), key=self._free_at.__getitem__)
            done_at = max(asked_at, self._free_at[worker]) + self._cost_s
            self._free_at[worker] = done_at
        self._clock.sleep(min(done_at - asked_at, HTTP_TIMEOUT_S))
        answer = self._upstream.handle(request)
        if done_at - asked_at > HTTP_TIMEOUT_S:
            self.timed_out += 1
            raise httpx.ReadTimeout("The read operation timed out")
        return answer


def busiest(times: Iterable[float], window_s: float) -> int:
    """The most that fell into any window of this length."""
    ordered = sorted(times)
    most = first = 0
    for number, at in enumerate(ordered):
        while at - ordered[first] >= window_s:
            first += 1
        most = max(most, number - first + 1)
    return most


def in_front(*busy: tuple[Upstream, Busy]) -> Any:
    """What stands between the clients and these services."""
    by_upstream = {id(upstream): handler for upstream, handler in busy}

    def between(upstream: Upstream) -> Handler:
        return by_upstream[id(upstream)]

    return between
