"""The probe of the tailscale container, as it stands in the manifest, with the shell and wget that its image has."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest

from lifecycle.health.server import serve
from lifecycle.health.status import Status
from lifecycle.settings.models import DnsWatchSettings, command_variables
from lifecycle.settings.reference import default_text
from tests.builders import addresses, publish
from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.programs import free_ports

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe(tmp_path / "bin")


@pytest.fixture
def status() -> Status:
    return Status(longest_interval=timedelta(minutes=5), verify_interval=timedelta(minutes=5))


@pytest.fixture
def port(status: Status) -> Iterator[int]:
    """The real health port."""
    (number,) = free_ports(1)
    with ExitStack() as stack:
        stack.callback(serve(status, address=None, port=number))
        yield number


def healthy(_status: Status) -> None:
    """Nothing has happened yet."""


def registered(status: Status) -> None:
    """As it should be."""
    publish(status, is_registered=True, in_sync=True, addresses=addresses("100.64.0.1"))


def superseded(status: Status) -> None:
    """A later pod has the name."""
    publish(status, superseded_by="2")


def gone(status: Status) -> None:
    """Lost, and nothing to come back with."""
    publish(status, lost="gone")


def dead(status: Status) -> None:
    """The loop of dns-watch hangs, which is for its own probe to see."""
    status.silent_since_s = -1_000_000.0


@pytest.mark.parametrize("state", [healthy, registered, superseded, gone, dead])
def test_left_alone(probe: Probe, status: Status, port: int, state: Callable[[Status], None]) -> None:
    """In every state but one the VPN goes on."""
    state(status)
    assert not probe.fails(port)


def test_restarted(probe: Probe, status: Status, port: int) -> None:
    """Our node is confirmed lost and a fresh key is in the file."""
    publish(status, lost="gone", restart_helps=True)
    assert probe.fails(port)


def test_nobody_listens(probe: Probe) -> None:
    """dns-watch is being restarted itself, or has another port: no answer is no reason to kill a VPN."""
    (nobody,) = free_ports(1)
    assert not probe.fails(nobody)


@contextmanager
def answering(*chunks: bytes, then_hang: bool = False) -> Iterator[int]:
    """Serve these bytes to each client, whatever it asks for."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                if then_hang:
                    stack.callback(client.close)
                    for chunk in chunks:
                        client.sendall(chunk)
                    continue
                with closing(client):
                    client.recv(65536)
                    for chunk in chunks:
                        client.sendall(chunk)

        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


UNAVAILABLE = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 3\r\n\r\n{}\n"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"", id="closed"),
        pytest.param(b"503 503\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.0 500 503 Oops\r\nContent-Length: 0\r\n\r\n", id="500"),
        pytest.param(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", id="404"),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nX: HTTP/1.0 503 \r\nContent-Length: 14\r\n\r\nHTTP/1.0 503 \n", id="200-that-says-503"
        ),
        pytest.param(b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", id="redirect"),
    ],
)
def test_other_answers(probe: Probe, words: bytes) -> None:
    """Somebody else has the port: nothing that it says restarts a VPN, but a 503."""
    with answering(words) as port:
        assert not probe.fails(port)


@pytest.mark.parametrize("version", [b"0", b"1"])
def test_an_answered_503(probe: Probe, version: bytes) -> None:
    """In either version of HTTP."""
    with answering(UNAVAILABLE.replace(b"HTTP/1.0", b"HTTP/1." + version)) as port:
        assert probe.fails(port)


@pytest.mark.parametrize("words", [b"", b"HTTP/1.0 ", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_silence(probe: Probe, words: bytes) -> None:
    """A dns-watch that was stopped in the middle: the probe ends by itself and says that all is well."""
    with answering(words, then_hang=True) as port:
        assert not probe.fails(port)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy(probe: Probe, status: Status, port: int, variable: str) -> None:
    """A proxy in the container's environment is not asked, though it would answer a 503."""
    with answering(UNAVAILABLE) as proxy:
        proxied = {variable: f"http://127.0.0.1:{proxy}"}
        (nobody,) = free_ports(1)
        assert not probe.fails(nobody, **proxied)
        assert not probe.fails(port, **proxied)
        publish(status, restart_helps=True)
        assert probe.fails(port, **proxied)


def test_in_time(probe: Probe) -> None:
    """The kubelet takes a probe that runs for too long as failed: this one ends before."""
    words = " ".join(probe.command).split()
    assert int(words[words.index("timeout") + 1]) < probe.timeout_s


def test_where_it_asks(probe: Probe) -> None:
    """At the port that dns-watch listens at when nothing else is set."""
    port = default_text(command_variables(DnsWatchSettings)["HEALTH_PORT"])
    assert f"http://127.0.0.1:{port}/nodez" in " ".join(probe.command)
