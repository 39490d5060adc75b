"""A week of `dns-watch`: right within the intervals that are promised, and no bigger at its end than at its start."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from lifecycle.clients.credential import Credential
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.json_client import JsonClient
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

# What is promised: the interface is looked at each second, the record every VERIFY_INTERVAL with its jitter, the node
# every POLL_INTERVAL; after an outage the pause is a VERIFY_INTERVAL at most.
SEEN_S = 2.0
VERIFIED_S = 300.0 * 1.25 + SEEN_S
POLLED_S = 300.0 * 1.25 + SEEN_S

# A few caches fill up in the second day still; a list that grew with each pass would be a thousand times as long.
TOLERATED_BYTES = 64 * 1024
TOLERATED_OBJECTS = 500


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number


class Week:
    """One pod's sidecar, and what happens around it day after day."""

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

    def go_on(self, seconds: float) -> None:
        """Let time go by."""
        clock = self.world.clock
        until = clock.elapsed_s + seconds
        while self.due_s <= until:
            clock.sleep(max(0.0, self.due_s - clock.elapsed_s))
            self.due_s = clock.elapsed_s + max(self.watch.run_pass(), 0.001)
        clock.sleep(until - clock.elapsed_s)

    def to(self, hour: float) -> None:
        """Go on until this hour of the day."""
        self.go_on(hour * HOUR_S - self.world.clock.elapsed_s % DAY_S)

    @property
    def right(self) -> bool:
        """Whether the record says what the node has."""
        node = self.world.headscale.node(self.node.id)
        return (
            node is not None and list(self.world.records()) == [f"A {node.address}"] and self.watch.status.view.in_sync
        )

    def readdress(self) -> None:
        """Give the node another address, which the loop sees within a second."""
        self.interface.show(*self.world.headscale.readdress(self.node.id).addresses)
        self.due_s = min(self.due_s, self.world.clock.elapsed_s + 1.0)

    def edit(self) -> None:
        """A person changes the record by hand."""
        record = self.world.cloudflare.records(self.world.zone_id, NAME)[0]
        self.world.cloudflare.change_record(record.id, content="100.64.99.99")

    def restart_headscale(self) -> None:
        """Headscale answers nothing for a while, and knows nobody to be online after that."""
        self.world.headscale.faults.add(faults.refuse(), times=2)
        self.world.headscale.restart()
        self.world.headscale.connect(self.node.id)

    def day(self) -> None:
        """Everything that happens in a day; after each thing, the record is right when it was promised."""
        world = self.world
        for hour, happen, within_s in (
            (3.0, self.readdress, SEEN_S),
            (6.0, self.edit, VERIFIED_S),
            (9.0, self.restart_headscale, 2 * POLLED_S),
        ):
            self.to(hour)
            assert self.right
            happen()
            self.go_on(within_s)
            assert self.right, (hour, self.watch.status.view.reason)
        self.to(12.0)
        world.cloudflare.faults.add(faults.html(503), times=None)
        self.to(12.5)
        self.readdress()
        self.to(13.0)
        assert not self.watch.status.ready
        world.cloudflare.faults.clear()
        self.go_on(VERIFIED_S)
        assert self.right
        self.to(15.0)
        self.token_file.write_text(world.cloudflare.set_token())
        self.to(16.0)
        # What only the new token can put right.
        self.edit()
        self.go_on(VERIFIED_S)
        assert self.right
        self.to(23.0)
        assert self.right
        render_metrics(self.watch.status, accept="")
        self.go_on(HOUR_S)
        # What the simulators remember is none of the program's.
        world.headscale.requests.clear()
        world.cloudflare.requests.clear()


def test_a_week(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    try:
        week = Week(monkeypatch, tmp_path)
        week.day()
        tracemalloc.start()
        week.day()
        gc.collect()
        files, threads = open_files(), threading.active_count()
        objects, size = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            week.day()
        gc.collect()
        assert len(gc.get_objects()) - objects < TOLERATED_OBJECTS
        assert tracemalloc.get_traced_memory()[0] - size < TOLERATED_BYTES
        assert (open_files(), threading.active_count()) == (files, threads)
        count("simulated days of dns-watch", by=7)
    finally:
        tracemalloc.stop()
        structlog.reset_defaults()


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


def test_broken_connections_leave_none_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However an answer ends, its connection is closed or used again: after two hundred, one is open."""
    world = World(monkeypatch, tmp_path)
    with serve(world.headscale) as url, open_http(url, trust=public_trust()) as http:
        client = JsonClient(
            http,
            upstream=HEADSCALE,
            credential=Credential(lambda: world.headscale.api_key, name="HEADSCALE_API_KEY"),
            timeout=timedelta(seconds=10),
        )
        client.send("GET", "/api/v1/node")
        files = open_files()
        for round_ in range(200):
            fault = list(BROKEN.values())[round_ % (len(BROKEN) - (round_ > 16))]
            world.headscale.faults.add(fault())
            # Some of them are answers all the same.
            with suppress(ApiError):
                client.send("GET", "/api/v1/node")
            client.send("GET", "/api/v1/node")
        gc.collect()
        # The client's end and the simulator's are both this process's.
        assert open_files() - files <= 2
