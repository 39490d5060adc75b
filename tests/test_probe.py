"""The probe of the tailscale container, as it stands in the manifest, with the shell and wget that its image has."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from lifecycle.health import Status, serve
from lifecycle.settings import DnsWatchSettings, command_variables, default_text
from tests.builders import addresses
from tests.real.programs import free_ports

MANIFEST = Path("deploy/components/lifecycle/plain/lifecycle.yaml")
BUSYBOX = shutil.which("busybox")

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="needs busybox: scripts/bootstrap --system")


@pytest.fixture(scope="module")
def liveness(repository: Path) -> dict[str, Any]:
    """The probe, from the manifest that puts it there."""
    documents = yaml.safe_load_all((repository / MANIFEST).read_text())
    containers = [
        container
        for document in documents
        for container in document["spec"]["template"]["spec"].get("containers", [])
        if container["name"] == "tailscale"
    ]
    (container,) = containers
    probe: dict[str, Any] = container["livenessProbe"]
    return probe


@pytest.fixture
def applets(tmp_path: Path) -> Path:
    """A folder in which each program is busybox, as in the tailscale image."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "wget", "grep", "timeout"):
        (folder / name).symlink_to(BUSYBOX or "")
    return folder


Probe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def probe(liveness: dict[str, Any], applets: Path) -> Probe:
    """Run the probe's command against a port of this machine; its exit status is what counts."""

    def run(port: int, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [word.replace(":9003/", f":{port}/") for word in liveness["exec"]["command"]]
        assert command != liveness["exec"]["command"]
        return subprocess.run(
            [applets / command[0], *command[1:]],
            env={"PATH": str(applets), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


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
    status.registered = True
    status.verified(addresses("100.64.0.1"))


def superseded(status: Status) -> None:
    """A later pod has the name."""
    status.superseded_by = "2"


def gone(status: Status) -> None:
    """Lost, and nothing to come back with."""
    status.lost = "gone"


def dead(status: Status) -> None:
    """The loop of dns-watch hangs, which is for its own probe to see."""
    status.silent_since = -1_000_000.0


@pytest.mark.parametrize("state", [healthy, registered, superseded, gone, dead])
def test_left_alone(probe: Probe, status: Status, port: int, state: Callable[[Status], None]) -> None:
    """In every state but one the VPN goes on."""
    state(status)
    assert probe(port).returncode == 0


def test_restarted(probe: Probe, status: Status, port: int) -> None:
    """Our node is confirmed lost and a fresh key is in the file."""
    status.lost = "gone"
    status.restart_helps = True
    assert probe(port).returncode != 0


def test_nobody_listens(probe: Probe) -> None:
    """dns-watch is being restarted itself, or has another port: no answer is no reason to kill a VPN."""
    (nobody,) = free_ports(1)
    assert probe(nobody).returncode == 0


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
        assert probe(port).returncode == 0


@pytest.mark.parametrize("version", [b"0", b"1"])
def test_an_answered_503(probe: Probe, version: bytes) -> None:
    """In either version of HTTP."""
    with answering(UNAVAILABLE.replace(b"HTTP/1.0", b"HTTP/1." + version)) as port:
        assert probe(port).returncode != 0


@pytest.mark.parametrize("words", [b"", b"HTTP/1.0 ", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_silence(probe: Probe, words: bytes) -> None:
    """A dns-watch that was stopped in the middle: the probe ends by itself and says that all is well."""
    with answering(words, then_hang=True) as port:
        assert probe(port).returncode == 0


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy(probe: Probe, status: Status, port: int, variable: str) -> None:
    """A proxy in the container's environment is not asked, though it would answer a 503."""
    with answering(UNAVAILABLE) as proxy:
        proxied = {variable: f"http://127.0.0.1:{proxy}"}
        (nobody,) = free_ports(1)
        assert probe(nobody, **proxied).returncode == 0
        assert probe(port, **proxied).returncode == 0
        status.restart_helps = True
        assert probe(port, **proxied).returncode != 0


def test_in_time(liveness: dict[str, Any]) -> None:
    """The kubelet takes a probe that runs for too long as failed: this one ends before."""
    words = " ".join(liveness["exec"]["command"]).split()
    limit_s = int(words[words.index("timeout") + 1])
    assert limit_s < liveness["timeoutSeconds"]


def test_where_it_asks(liveness: dict[str, Any]) -> None:
    """At the port that dns-watch listens at when nothing else is set."""

    port = default_text(command_variables(DnsWatchSettings)["HEALTH_PORT"])
    assert f"http://127.0.0.1:{port}/nodez" in " ".join(liveness["exec"]["command"])
