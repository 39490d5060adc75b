"""Days of `dns-watch`: the record is in sync within the promised intervals, and nothing accumulates."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import Credential, JsonClient
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import public_trust
from lifecycle.domain.errors import ApiError
from lifecycle.health.metrics import render_metrics
from tests.builders import NAME
from tests.simulators import faults
from tests.simulators.serve import serve
from tests.tally import count
from tests.world import USER, Interface, World

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

# The promises: the interface is polled each second, the record every VERIFY_INTERVAL with its jitter, the node every
# POLL_INTERVAL. After an outage, the backoff is at most a VERIFY_INTERVAL.
INTERFACE_S = 2.0
VERIFIED_S = 300.0 * 1.25 + INTERFACE_S
POLLED_S = 300.0 * 1.25 + INTERFACE_S

# Some caches still fill up in the second day. A list that grows with each pass would be a thousand times as long.
TOLERATED_BYTES = 64 * 1024
TOLERATED_OBJECTS = 500


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number


class Sidecar:
    """One pod's sidecar, and the daily events around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        world = self.world = World(monkeypatch, folder)
        world.headscale.keep_bodies = world.cloudflare.keep_bodies = False
        self.token_file = folder / "token"
        self.token_file.write_text(world.cloudflare.token)
        del world.environment["CLOUDFLARE_API_TOKEN"]
        world.environment["CLOUDFLARE_API_TOKEN_FILE"] = str(self.token_file)
        world.environment["POLL_INTERVAL"] = "5m"
        for number in range(5):
            world.headscale.add_node(f"app{number}.example.com", user=USER)
        self.node = world.headscale.add_node(NAME, user=USER)
        self.interface = Interface(*self.node.addresses)
        self.watch = world.watch(self.interface)
        self.due_s = 0.0

    def run(self, seconds: float) -> None:
        """Run for this long. A pass that is due later is kept."""
        clock = self.world.clock
        until = clock.elapsed_s + seconds
        while self.due_s <= until:
            clock.sleep(max(0.0, self.due_s - clock.elapsed_s))
            self.due_s = clock.elapsed_s + max(self.watch.run_pass(), 0.001)
        clock.sleep(until - clock.elapsed_s)

    def run_until(self, hour: float) -> None:
        """Run until this hour of the day."""
        self.run(hour * HOUR_S - self.world.clock.elapsed_s % DAY_S)

    def assert_in_sync(self) -> None:
        """The record has the node's address, and the status reports so."""
        node = self.world.headscale.node(self.node.id)
        assert node is not None
        assert [*self.world.records()] == [f"A {node.address}"]
        assert self.watch.state.records.in_sync, self.watch.state.records.reason

    def change_address(self) -> None:
        """Give the node another address, which the loop detects within a second."""
        self.interface.set_addresses(*self.world.headscale.readdress(self.node.id).addresses)
        self.due_s = min(self.due_s, self.world.clock.elapsed_s + 1.0)

    def edit_record(self) -> None:
        """Change the record by hand."""
        record = self.world.cloudflare.records(self.world.zone_id, NAME)[0]
        self.world.cloudflare.change_record(record.id, content="100.64.99.99")

    def restart_headscale(self) -> None:
        """Refuse two connections; after that, every node is offline but this one."""
        self.world.headscale.faults.add(faults.refuse(), times=2)
        self.world.headscale.restart()
        self.world.headscale.connect(self.node.id)

    def run_day(self) -> None:
        """Run all events of a day. After each of them, the record is in sync in time."""
        world = self.world
        for hour, happen, within_s in (
            (3.0, self.change_address, INTERFACE_S),
            (6.0, self.edit_record, VERIFIED_S),
            (9.0, self.restart_headscale, 2 * POLLED_S),
        ):
            self.run_until(hour)
            self.assert_in_sync()
            happen()
            self.run(within_s)
            self.assert_in_sync()
        self.run_until(12.0)
        world.cloudflare.faults.add(faults.html(503), times=None)
        self.run_until(12.5)
        self.change_address()
        self.run_until(13.0)
        assert not self.watch.status.ready
        world.cloudflare.faults.clear()
        self.run(VERIFIED_S)
        self.assert_in_sync()
        self.run_until(15.0)
        self.token_file.write_text(world.cloudflare.set_token())
        self.run_until(16.0)
        # Only the new token can change the record.
        self.edit_record()
        self.run(VERIFIED_S)
        self.assert_in_sync()
        self.run_until(23.0)
        self.assert_in_sync()
        render_metrics(self.watch.status, accept="")
        self.run(HOUR_S)
        # The memory of the simulators is not the program's.
        world.headscale.requests.clear()
        world.cloudflare.requests.clear()
        count("simulated days of dns-watch")


@pytest.fixture
def sidecar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sidecar]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    yield Sidecar(monkeypatch, tmp_path)
    structlog.reset_defaults()


def test_record_is_in_sync_within_the_promised_intervals(sidecar: Sidecar) -> None:
    sidecar.run_day()


@pytest.mark.full
def test_nothing_accumulates_in_a_week(sidecar: Sidecar) -> None:
    sidecar.run_day()
    tracemalloc.start()
    try:
        sidecar.run_day()
        gc.collect()
        files, threads = open_files(), threading.active_count()
        objects, size = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            sidecar.run_day()
        gc.collect()
        assert len(gc.get_objects()) - objects < TOLERATED_OBJECTS
        assert tracemalloc.get_traced_memory()[0] - size < TOLERATED_BYTES
        assert (open_files(), threading.active_count()) == (files, threads)
    finally:
        tracemalloc.stop()


BROKEN: dict[str, Callable[[], faults.Fault]] = {
    "reset before": faults.drop,
    "reset after": lambda: faults.drop(committed=True),
    "truncated": faults.truncate,
    "garbage": faults.garbage,
    "wrong content type": faults.wrong_content_type,
    "429": lambda: faults.too_many_requests(1),
    "5xx with HTML": lambda: faults.html(502),
    "too large": lambda: faults.oversize(40 * 1024 * 1024),
}


def test_no_failure_leaks_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However a response ends, its connection is closed or used again."""
    world = World(monkeypatch, tmp_path)
    with serve(world.headscale) as url, open_http(url, trust=public_trust()) as http:
        client = JsonClient(
            HttpClient(http, upstream=HEADSCALE, timeout=timedelta(seconds=10)),
            credential=Credential(lambda: world.headscale.api_key, name="HEADSCALE_API_KEY"),
        )
        client.send("GET", "/api/v1/node")
        files = open_files()
        for round_ in range(200):
            fault = list(BROKEN.values())[round_ % (len(BROKEN) - (round_ > 16))]
            world.headscale.faults.add(fault())
            # Some faults are valid responses.
            with suppress(ApiError):
                client.send("GET", "/api/v1/node")
            client.send("GET", "/api/v1/node")
        gc.collect()
        # Both ends of a connection belong to this process.
        assert open_files() - files <= 2
