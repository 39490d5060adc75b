from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lifecycle.settings.models import DnsWatchSettings, command_variables
from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.programs import eventually

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)

STARTED = 1_800_000_000
"""When tailscaled was started, in seconds since 1970."""


class Container:
    """The probe, and the files that it reads. A regular file replaces the socket."""

    def __init__(self, folder: Path) -> None:
        self._probe = Probe(folder / "bin")
        self.marker = folder / "tailscale-auth/authkey.restart"
        self.socket = folder / "tailscaled.sock"
        self.marker.parent.mkdir()

    def start(self, at: int) -> None:
        """Replace the socket, as tailscaled does when it starts."""
        self.socket.unlink(missing_ok=True)
        self.socket.touch()
        os.utime(self.socket, (at, at))

    def mark(self, at: int) -> None:
        """Write the marker, as dns-watch does when a restart helps."""
        self.marker.write_text("1")
        os.utime(self.marker, (at, at))

    def fails_probe(self) -> bool:
        """Return True if the probe fails."""
        return self._probe.fails(marker=self.marker, socket=self.socket)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


@pytest.mark.parametrize(
    ("marked", "restarted"),
    [
        pytest.param(STARTED + 1, True, id="newer"),
        pytest.param(STARTED + 86_400, True, id="a-day-newer"),
        pytest.param(STARTED, False, id="same-second"),
        pytest.param(STARTED - 1, False, id="older"),
        pytest.param(None, False, id="no-marker"),
    ],
)
def test_probe_fails_only_with_a_marker_newer_than_the_socket(
    container: Container, marked: int | None, restarted: bool
) -> None:
    container.start(STARTED)
    if marked is not None:
        container.mark(marked)
    assert container.fails_probe() == restarted


def test_probe_passes_before_tailscaled_has_created_its_socket(container: Container) -> None:
    container.mark(STARTED)
    assert not container.fails_probe()


def test_probe_passes_without_any_file(container: Container) -> None:
    assert not container.fails_probe()


def test_probe_passes_without_the_key_folder(container: Container) -> None:
    container.start(STARTED)
    container.marker.parent.rmdir()
    assert not container.fails_probe()


def test_probe_passes_again_when_the_marker_is_removed(container: Container) -> None:
    container.start(STARTED)
    container.mark(STARTED + 60)
    assert container.fails_probe()
    container.marker.unlink()
    assert not container.fails_probe()


def test_marker_of_a_dead_dns_watch_causes_one_restart(container: Container) -> None:
    container.start(STARTED)
    container.mark(STARTED + 60)
    assert container.fails_probe()
    container.start(STARTED + 120)
    assert not container.fails_probe()


def test_next_fresh_key_causes_another_restart(container: Container) -> None:
    container.start(STARTED)
    container.mark(STARTED + 60)
    container.start(STARTED + 120)
    container.mark(STARTED + 180)
    assert container.fails_probe()


@contextmanager
def unavailable_on(port: int) -> Iterator[list[str]]:
    """Return 503 to every request to the port, and yield the requested paths."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    def listen() -> HTTPServer | None:
        # A dns-watch of another test can have the port for a moment.
        try:
            return HTTPServer(("127.0.0.1", port), Handler)
        except OSError:
            return None

    server = eventually(listen, f"port {port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_application_on_the_health_port_does_not_affect_the_probe(container: Container) -> None:
    container.start(STARTED)
    with unavailable_on(command_variables(DnsWatchSettings)["HEALTH_PORT"].default) as requested:
        assert not container.fails_probe()
        container.mark(STARTED + 60)
        assert container.fails_probe()
    assert not requested
