"""Test `dns-watch` for simulated days.

After every event, the record must be in sync within a time limit. The memory and the numbers of open files and threads
must not grow.
"""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import public_trust
from lifecycle.domain.errors import ApiError
from lifecycle.health.metrics import render_metrics
from tests.builders import NAME
from tests.simulators import faults
from tests.simulators.serve import serve
from tests.tally import add_to_count
from tests.world import MIN_WAIT_S, USER, Interface, World

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

# The time limits until the record is in sync, plus one second. `dns-watch` reads the addresses of the interface every
# second, the record every VERIFY_INTERVAL, and the node every POLL_INTERVAL. Both intervals are 5 minutes, plus jitter
# of at most a quarter. If Headscale restarts, the next request can fail, and the retry follows within another interval.
AFTER_ADDRESS_CHANGE_S = 1.0 + 1.0
AFTER_RECORD_CHANGE_S = 300.0 * 1.25 + 1.0
AFTER_HEADSCALE_RESTART_S = 2 * AFTER_RECORD_CHANGE_S

# These limits allow for caches that still grow after the second day. They are small enough to detect a list that gets
# an item in every pass, because a week has thousands of passes.
TOLERATED_BYTES = 64 * 1024
TOLERATED_OBJECTS = 500


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number


def allocated_bytes() -> int:
    # Ignore what pathlib allocates: it interns strings, and the interpreter sometimes enlarges the table of these.
    traces = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(inclusive=False, filename_pattern="*pathlib*")]
    )
    return sum(statistic.size for statistic in traces.statistics("filename"))


class Sidecar:
    """The sidecar of one pod, and the events that happen to it every day."""

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
        self.next_pass_s = 0.0

    def run(self, seconds: float) -> None:
        """Advance the clock by this many seconds, and run the passes that begin in this time."""
        clock = self.world.clock
        until = clock.elapsed_s + seconds
        while self.next_pass_s <= until:
            clock.sleep(max(0.0, self.next_pass_s - clock.elapsed_s))
            wait_s = max(self.watch.run_pass(), MIN_WAIT_S)
            self.next_pass_s = clock.elapsed_s + wait_s
        clock.sleep(until - clock.elapsed_s)

    def run_until(self, hour: float) -> None:
        """Run until this hour of the simulated day."""
        self.run(hour * HOUR_S - self.world.clock.elapsed_s % DAY_S)

    def assert_in_sync(self) -> None:
        """Assert that the record has the node's address, and that the sidecar reports the record as in sync."""
        node = self.world.headscale.node(self.node.id)
        assert node is not None
        assert [*self.world.records()] == [f"A {node.address}"]
        assert self.watch.state.records.in_sync, self.watch.state.records.reason

    def change_address(self) -> None:
        """Give the node another address. `dns-watch` detects this within a second, and begins a pass."""
        self.interface.set_addresses(*self.world.headscale.readdress(self.node.id).addresses)
        self.next_pass_s = min(self.next_pass_s, self.world.clock.elapsed_s + 1.0)

    def edit_record(self) -> None:
        """Change the address in the record, as a person could do in Cloudflare's dashboard."""
        record = self.world.cloudflare.records(self.world.zone_id, NAME)[0]
        self.world.cloudflare.change_record(record.id, content="100.64.99.99")

    def restart_headscale(self) -> None:
        """Restart Headscale, which disconnects all nodes, and connect this pod's node. Two connections are refused."""
        self.world.headscale.faults.add(faults.refuse(), times=2)
        self.world.headscale.restart()
        self.world.headscale.connect(self.node.id)

    def run_day(self) -> None:
        """Run all events of a day, and assert that the record is in sync in time after each of them."""
        world = self.world
        for hour, event, within_s in (
            (3.0, self.change_address, AFTER_ADDRESS_CHANGE_S),
            (6.0, self.edit_record, AFTER_RECORD_CHANGE_S),
            (9.0, self.restart_headscale, AFTER_HEADSCALE_RESTART_S),
        ):
            self.run_until(hour)
            self.assert_in_sync()
            event()
            self.run(within_s)
            self.assert_in_sync()
        self.run_until(12.0)
        world.cloudflare.faults.add(faults.html(503), times=None)
        self.run_until(12.5)
        self.change_address()
        self.run_until(13.0)
        assert not self.watch.status.ready, "Cloudflare still has the old address"
        world.cloudflare.faults.clear()
        self.run(AFTER_RECORD_CHANGE_S)
        self.assert_in_sync()
        self.run_until(15.0)
        self.token_file.write_text(world.cloudflare.set_token())
        self.run_until(16.0)
        # The old token is not valid any more, so the sidecar must use the new one to correct the record.
        self.edit_record()
        self.run(AFTER_RECORD_CHANGE_S)
        self.assert_in_sync()
        self.run_until(23.0)
        self.assert_in_sync()
        # A request for the metrics must not use memory permanently either.
        render_metrics(self.watch.status, accept="")
        self.run(HOUR_S)
        # Free the memory of the simulators, so that only the program's memory can grow.
        world.headscale.requests.clear()
        world.cloudflare.requests.clear()
        add_to_count("simulated days of dns-watch")


@pytest.fixture
def sidecar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sidecar]:
    # Log events are not printed.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    yield Sidecar(monkeypatch, tmp_path)
    structlog.reset_defaults()


def test_record_is_in_sync_within_the_promised_time(sidecar: Sidecar) -> None:
    sidecar.run_day()


@pytest.mark.full
def test_memory_files_and_threads_do_not_grow_in_a_week(sidecar: Sidecar) -> None:
    sidecar.run_day()
    tracemalloc.start()
    try:
        sidecar.run_day()
        gc.collect()
        files, threads = open_files(), threading.active_count()
        objects, size = len(gc.get_objects()), allocated_bytes()
        for _ in range(5):
            sidecar.run_day()
        gc.collect()
        assert len(gc.get_objects()) - objects < TOLERATED_OBJECTS
        assert allocated_bytes() - size < TOLERATED_BYTES
        assert (open_files(), threading.active_count()) == (files, threads)
    finally:
        tracemalloc.stop()


TOO_LARGE = faults.oversize(40 * 1024 * 1024)
FAILURES = (
    faults.drop(),
    faults.drop(after_execution=True),
    faults.truncate(),
    faults.malformed_json(),
    faults.wrong_content_type(),
    faults.too_many_requests(1),
    faults.html(502),
)


def test_failed_requests_do_not_leave_connections_open(world: World) -> None:
    """After a failed request, its connection is closed or used for the next request."""
    with serve(world.headscale) as url, open_http(url, trust=public_trust()) as http:
        client = JsonClient(
            HttpClient(http, upstream=HEADSCALE, timeout=timedelta(seconds=10)),
            read_token=lambda: world.headscale.api_key,
        )
        client.send("GET", "/api/v1/node")
        files = open_files()
        # Repeat each fault, so that a leak exceeds the limit below. A large response takes long, so send it only twice.
        for fault in [TOO_LARGE, TOO_LARGE, *FAILURES * 28]:
            world.headscale.faults.add(fault)
            # With some of these faults, the client raises no error.
            with suppress(ApiError):
                client.send("GET", "/api/v1/node")
            client.send("GET", "/api/v1/node")
        gc.collect()
        # The server and the client run in this process, so one open connection counts as two open files.
        assert open_files() - files <= 2
