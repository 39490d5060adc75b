"""`World`: simulators of Headscale and Cloudflare (the upstreams), a simulated clock, and the program's real commands.

Everything runs in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import tenacity

from lifecycle.apply import Writers
from lifecycle.cleanup.run import Cleanup
from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.upstream import Upstream
from lifecycle.commands import CLEANUP_RETRY_BUDGET
from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.model import IpAddress
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import RetryPolicy, no_retries
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings, Command, DnsWatchSettings, Settings
from tests.builders import NAME, NOW, OUR_COMMENT, addresses
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator, Node
from tests.simulators.memory import MemoryClient
from tests.simulators.messages import Handler
from tests.simulators.upstream import Upstream as UpstreamSimulator

USER = "svc"
ZONE = "example.com"

# Minimum wait after a pass, which is one iteration of the loop of `dns-watch`. Without a minimum, the clock would not
# advance if `dns-watch` does not wait, and the test would run forever.
MIN_WAIT_S = 0.001


class Clock:
    """A clock that advances only during sleeps, and runs scheduled actions when they are due.

    Attributes:
        skew: how far this machine's wall clock is ahead of the upstreams' clock.
    """

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.skew = timedelta()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        # Actions that are due at the same time run in the order in which they were scheduled.
        self._order = count()

    def now(self) -> datetime:
        """Return the time by this machine's clock, in UTC."""
        return self.true_now() + self.skew

    def true_now(self) -> datetime:
        """Return the time by the upstreams' clock, in UTC."""
        return NOW + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return self.elapsed_s

    def schedule(self, elapsed_s: float, action: Callable[[], object]) -> None:
        """Schedule an action this many seconds after the start."""
        heappush(self._due, (elapsed_s, next(self._order), action))

    def sleep(self, seconds: float, *, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        """Advance the clock by this long, or less if `is_interrupted` returns True after a scheduled action."""
        until = self.elapsed_s + seconds
        while self._due and self._due[0][0] <= until:
            due_s, _, action = heappop(self._due)
            self.elapsed_s = max(self.elapsed_s, due_s)
            action()
            if is_interrupted():
                return
        self.elapsed_s = until


class StopAt(Event):
    """A stop event whose waits advance a clock. A wait that reaches a given time sets the event.

    Args:
        elapsed_s: this time in seconds of the clock; None = never.
    """

    def __init__(self, clock: Clock, elapsed_s: float | None = None) -> None:
        super().__init__()
        self._clock = clock
        self._set_at_s = elapsed_s
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Advance the clock by this long, or until the event is set."""
        seconds = timeout or 0.0
        self.waits.append(seconds)
        self._clock.sleep(seconds, is_interrupted=self.is_set)
        if self._set_at_s is not None and self._clock.elapsed_s >= self._set_at_s:
            self.set()
        return self.is_set()


class Interface:
    """A pod's VPN interface. Calling it returns its addresses, or None if it does not exist.

    Args:
        texts: its addresses, or a single None if the interface does not exist.
    """

    def __init__(self, *texts: str | None) -> None:
        self.set_addresses(*texts)

    def set_addresses(self, *texts: str | None) -> None:
        """Replace the addresses. A single None removes the interface."""
        self.addresses = None if texts == (None,) else addresses(*(text for text in texts if text is not None))

    def __call__(self) -> tuple[IpAddress, ...] | None:
        return self.addresses


NO_INTERFACE = Interface(None)


def restart_backoff_s(exits: int) -> float:
    """Return how long the kubelet waits before it restarts a container that has exited this many times in a row."""
    return min(10.0 * 2.0 ** (exits - 1), 300.0)


class World:
    """Headscale with the user `svc`, Cloudflare with the zone example.com, a clock, and the volume of a pod.

    Args:
        folder: the pod's volume.
        version: the release of Headscale.
        clock: the clock that the upstreams and the commands use.

    Attributes:
        environment: the variables of the pod's containers.
        route: returns the function that handles the requests to an upstream. A test can replace it, to record or change
            the requests.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.28.0", *, clock: Clock | None = None
    ) -> None:
        self._monkeypatch = monkeypatch
        self.clock = clock or Clock()
        self.headscale = HeadscaleSimulator(version, now=self.clock.true_now)
        self.headscale.add_user(USER)
        self.cloudflare = CloudflareSimulator(now=self.clock.true_now)
        self.zone_id = self.cloudflare.add_zone(ZONE)
        self.key_file = folder / "authkey"
        self.environment = {
            "HEADSCALE_NAMESPACE": "headscale",
            "HEADSCALE_URL": "http://headscale",
            "HEADSCALE_API_KEY": self.headscale.api_key,
            "CLOUDFLARE_API_URL": "http://cloudflare/client/v4",
            "CLOUDFLARE_API_TOKEN": self.cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": ZONE,
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            "HOSTNAME": "grafana-0",
        }
        self.route: Callable[[UpstreamSimulator], Handler] = lambda upstream: upstream.handle

    # --- The commands -------------------------------------------------------------------------------

    def settings(self, command: type[Command], **variables: str) -> Command:
        """Return a command's settings. The given variables replace those of the environment; "" unsets one."""
        with self._monkeypatch.context() as patch:
            for name, value in (self.environment | variables).items():
                patch.setenv(name, value)
            return load(command)

    def writers(self, settings: Settings, policy: tenacity.Retrying) -> Writers:
        """Return the real clients, connected to the simulators."""
        headscale = json_client(
            self.route(self.headscale),
            HEADSCALE,
            base_url="http://headscale",
            read_token=lambda: settings.secret("HEADSCALE_API_KEY"),
            now=self.clock.now,
        )
        cloudflare = json_client(
            self.route(self.cloudflare),
            CLOUDFLARE,
            base_url="http://cloudflare/client/v4",
            read_token=lambda: settings.secret("CLOUDFLARE_API_TOKEN"),
            now=self.clock.now,
        )
        return Writers(
            HeadscaleWriter(HttpTransport(headscale), policy),
            CloudflareWriter(cloudflare, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
            KeyFileWriter(settings.authkey_output_path, int(settings.authkey_file_mode, 8)),
        )

    def cleanup(self, stop: Event | None = None, /, **variables: str) -> Cleanup:
        """Return `cleanup`. Its waits advance this world's clock."""
        settings = self.settings(CleanupSettings, **variables)
        stop = stop or StopAt(self.clock)
        policy = RetryPolicy(CLEANUP_RETRY_BUDGET, stop, clock=self.clock.monotonic)
        return Cleanup(settings, writers=self.writers(settings, policy), now=self.clock.now, stop=stop)

    def watch(self, interface: Interface = NO_INTERFACE, /, **variables: str) -> DnsWatch:
        """Return `dns-watch`. It reads the time from this world's clock."""
        settings = self.settings(DnsWatchSettings, **variables)
        return DnsWatch(
            settings,
            writers=self.writers(settings, no_retries()),
            interface=interface,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
        )

    def run(self, watch: DnsWatch, seconds: float) -> None:
        """Run passes of one `dns-watch` for this long. The exception of a failed pass is raised."""
        until = self.clock.elapsed_s + seconds
        while self.clock.elapsed_s < until:
            wait_s = max(watch.run_pass(), MIN_WAIT_S)
            if not watch.interface_changed():
                self.clock.sleep(min(wait_s, until - self.clock.elapsed_s), is_interrupted=watch.interface_changed)

    def run_together(self, *watches: DnsWatch, seconds: float) -> None:
        """Run several `dns-watch` for this long. Their passes alternate, each at the time when it is due."""
        until = self.clock.elapsed_s + seconds
        order = count()
        due = [(self.clock.elapsed_s, next(order), watch) for watch in watches]
        while due and due[0][0] < until:
            due_s, _, watch = heappop(due)
            self.clock.sleep(max(0.0, due_s - self.clock.elapsed_s))
            heappush(due, (self.clock.elapsed_s + max(watch.run_pass(), MIN_WAIT_S), next(order), watch))
        self.clock.sleep(max(0.0, until - self.clock.elapsed_s))

    # --- State -------------------------------------------------------------------------------------

    @property
    def key(self) -> str | None:
        """Return the content of the key file; None if it does not exist."""
        return self.key_file.read_text() if self.key_file.exists() else None

    @property
    def hostnames(self) -> list[str]:
        """Return the hostname that each node reported, in the order of the node ids."""
        return [node.name for node in self.headscale.nodes]

    def usable_keys(self) -> list[str]:
        """Return the secrets of the pre-auth keys with which a node can register now."""
        now = self.clock.true_now()
        return [key.key for key in self.headscale.keys if key.expires_at > now and (key.reusable or not key.used)]

    def add_record(self, content: str, *, name: str = NAME, type_: str = "A", **fields: Any) -> str:
        """Add a record to the zone, and return its id."""
        return self.cloudflare.add_record(self.zone_id, type=type_, name=name, content=content, **fields)

    def add_leftovers(self) -> Node:
        """Add the node and the record of an earlier pod, and return the node."""
        node = self.headscale.add_node(NAME, user=USER, online=False)
        self.add_record(node.address, ttl=60, comment=OUR_COMMENT)
        return node

    def records(self, name: str = NAME) -> dict[str, str]:
        """Return the comment of each record of a name, by type and content, such as "A 100.64.0.1"."""
        return {
            f"{record.type} {record.content}": record.comment for record in self.cloudflare.records(self.zone_id, name)
        }


def json_client(
    handler: Handler,
    upstream: Upstream,
    *,
    base_url: str,
    read_token: Callable[[], str],
    now: Callable[[], datetime] = utc_now,
) -> JsonClient:
    """Return a JSON client whose requests are calls in this process."""
    return JsonClient(
        HttpClient(MemoryClient(handler, base_url), upstream=upstream, timeout=timedelta(seconds=10), now=now),
        read_token=read_token,
    )


def event_names(events: list[Any]) -> list[str]:
    """Return the names of the events, in order."""
    return [event["event"] for event in events]


def events_named(events: list[Any], name: str) -> list[Any]:
    """Return the events with this name."""
    return [event for event in events if event["event"] == name]
